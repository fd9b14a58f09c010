"""The experiments: which networks, which noise, and what the paper says of each.

    figure1    stored against real variance of each BatchNorm of a DenseNet, with and without Dropout
    sites      Dropout upstream of a BatchNorm (a) or of a convolution (b), four architectures, several ratios
    width      the shift of wide ResNets against their width
    uout       multiplicative noise instead of Dropout, its width and its three forms
    last       Dropout downstream of the last BatchNorm only
    remedies   a damaged network as trained and repaired, beside networks trained with the remedies
    regularization  what noise is worth where there is something to regularise: few images, many epochs

A paper's number stands where it was measured on the same cell, with its data set; else "not available".
Source: Li, Chen, Hu, Yang, CVPR 2019, arXiv 1801.05134.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vsfix.graph_passes.errors import InputError
from vsfix.trainers.networks.network import network_for
from vsfix.trainers.training.recipes import find_recipe
from vsfix.trainers.training.training_config import TrainingConfig

from .trial import AS_TRAINED, OWN, PAIRED, RE_ESTIMATED, REPAIRED

NOT_AVAILABLE = "not available"
_DROPOUT = "Dropout 0.5 at a"
_RATIOS = (0.1, 0.3, 0.5)
_BETAS = (0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Cell:
    """One row of a table: runs that differ in their seed alone.

    Attributes:
        labels: one text for each heading of the experiment.
        model: the network.
        noise: as `--noise` takes it.
        paper: what the paper has for it.
        changes: fields of the training that are other than the experiment's.
    """

    labels: tuple[str, ...]
    model: str
    noise: tuple[str, ...]
    paper: str = NOT_AVAILABLE
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Experiment:
    """One table.

    Attributes:
        name: as the command takes it.
        claim: what the paper says, in words.
        headings: of the labels of its cells.
        cells: its rows.
        repairs: names of `REPAIRS` that are measured.
        compared: each a form of the network, as trained or a name of `REPAIRS`, and what its top-1 is compared with,
            seed by seed: the last label of a row, as trained, of the same network, or another form of the same row.
        changes: fields of the training that are other than the scale's.
    """

    name: str
    claim: str
    headings: tuple[str, ...]
    cells: tuple[Cell, ...]
    repairs: tuple[str, ...] = ()
    compared: tuple[tuple[str, str], ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Scale:
    """How large the runs are.

    Attributes:
        networks: by family: preresnet, densenet, wrn, resnext.
        widths: the wide ResNets of `width`.
        recipes: by family.
        changes: fields of the training that are other than the recipe's.
        slow: families of which `sites` takes the first site alone.
        width_changes: fields that are other than these in `width`, whose widest network is slow.
        regularized: the networks of `regularization`, each with the fields that are other than these there.
    """

    networks: Mapping[str, str]
    widths: tuple[str, ...]
    recipes: Mapping[str, str]
    changes: Mapping[str, Any]
    slow: tuple[str, ...] = ()
    width_changes: Mapping[str, Any] = field(default_factory=dict)
    regularized: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_FAMILIES = ("preresnet", "densenet", "wrn", "resnext")
_WIDTHS = ("wrn-16-1", "wrn-16-2", "wrn-16-4", "wrn-16-8")
SCALES: Mapping[str, Scale] = {
    "small": Scale(
        networks={
            "preresnet": "preresnet-20",
            "densenet": "densenet-22-8",
            "wrn": "wrn-16-2",
            "resnext": "resnext-11-4x4d",
        },
        widths=_WIDTHS,
        recipes=dict.fromkeys((*_FAMILIES, "mlp"), "quick"),
        changes={"epochs": 2, "batch_size": 64, "samples": 4000},
        slow=("resnext",),
        width_changes={"epochs": 1, "samples": 3000},
        # Few images and many epochs; an image takes convolutions ten times as long.
        regularized={
            "mlp-1": {"epochs": 60, "batch_size": 50, "samples": 2000},
            "preresnet-8": {"epochs": 60, "batch_size": 50, "samples": 500},
        },
    ),
    "full": Scale(
        networks={
            "preresnet": "preresnet-110",
            "densenet": "densenet-100-12",
            "wrn": "wrn-28-10",
            "resnext": "resnext-29-8x64d",
        },
        widths=_WIDTHS,
        recipes={family: family for family in _FAMILIES},
        changes={},
        regularized={"preresnet-110": {}, "densenet-100-12": {}},
    ),
}
EXPERIMENTS = ("figure1", "sites", "width", "uout", "last", "remedies", "regularization")


def make_experiment(name: str, scale: Scale) -> Experiment:
    """The grid of one experiment.

    Raises:
        InputError: there is none of that name.
    """
    makers = (_figure1, _sites, _width, _uout, _last, _remedies, _regularization)
    for known, maker in zip(EXPERIMENTS, makers, strict=True):
        if name == known:
            return maker(scale)
    raise InputError(f"experiment '{name}': must be one of {', '.join(EXPERIMENTS)}")


def training_of(
    experiment: Experiment, cell: Cell, scale: Scale, data: str, seed: int, changes: Mapping[str, Any]
) -> TrainingConfig:
    """The training run of one cell under one seed.

    Args:
        experiment: the table.
        cell: its row.
        scale: how large the runs are.
        data: the data set.
        seed: of the run.
        changes: what the user asks for instead of the scale's.

    Raises:
        InputError: data, network or a value that can't be used.
    """
    network = network_for(cell.model, data, noise=cell.noise, site="a", width=1)
    recipe = find_recipe(scale.recipes[cell.model.partition("-")[0]])
    asked = {**scale.changes, **experiment.changes, **cell.changes, **changes}
    return TrainingConfig(data, network, **{**recipe, **asked, "seed": seed})


def _figure1(scale: Scale) -> Experiment:
    model = scale.networks["densenet"]
    rows = (
        ("none", ("none",), "77.42 % (CIFAR-100)"),
        ("Dropout 0.5 at a", ("a=dropout:0.5",), "68.55 % (CIFAR-100, in each bottleneck)"),
        ("Dropout 0.5 at b", ("b=dropout:0.5",), NOT_AVAILABLE),
    )
    return Experiment(
        "figure1",
        "Dropout makes BatchNorm store a variance that is not the one at inference",
        ("network", "noise"),
        tuple(Cell((model, label), model, noise, paper) for label, noise, paper in rows),
    )


def _sites(scale: Scale) -> Experiment:
    cells = []
    for family, model in scale.networks.items():
        # All ratios in one architecture; in the others the largest, where they differ most.
        ratios: Sequence[float] = _RATIOS if family == "preresnet" else _RATIOS[-1:]
        sites = ("a",) if family in scale.slow else ("a", "b")
        cells.append(Cell((model, "none", "0"), model, ("none",)))
        cells += [
            Cell((model, site, f"{ratio:g}"), model, (f"{site}=dropout:{ratio:g}",))
            for site in sites
            for ratio in ratios
        ]
    return Experiment(
        "sites",
        "Dropout upstream of BatchNorm lowers accuracy, in wide ResNets least",
        ("network", "site", "drop ratio"),
        tuple(cells),
    )


def _width(scale: Scale) -> Experiment:
    rows = (("none", ("none",)), ("Dropout 0.5 at b", ("b=dropout:0.5",)))
    return Experiment(
        "width",
        "The shift shrinks as the feature dimension grows",
        ("network", "noise"),
        tuple(Cell((model, label), model, noise) for model in scale.widths for label, noise in rows),
        changes=scale.width_changes,
    )


def _uout(scale: Scale) -> Experiment:
    model = scale.networks["preresnet"]
    papers = {0.1: "shift ratio about 0.9967", 0.2: "about +0.3 % against Dropout (CIFAR-100, DenseNet and WRN)"}
    cells = [
        Cell((model, "none"), model, ("none",)),
        Cell((model, "Dropout 0.1"), model, ("a=dropout:0.1",), "shift ratio 0.9"),
        Cell((model, "Dropout 0.5"), model, ("a=dropout:0.5",)),
    ]
    cells += [
        Cell((model, f"Uout {beta:g}"), model, (f"a=uout:{beta:g}",), papers.get(beta, NOT_AVAILABLE))
        for beta in _BETAS
    ]
    cells += [Cell((model, f"Uout 0.2, {form}"), model, (f"a=uout-{form}:0.2",)) for form in ("bernoulli", "gaussian")]
    return Experiment(
        "uout", "Uout instead of Dropout hardly shifts the variance", ("network", "noise at a"), tuple(cells)
    )


def _last(scale: Scale) -> Experiment:
    model = scale.networks["preresnet"]
    papers = {0.1: "top-1 error 21.70 -> 21.48 % (ImageNet, ResNet-200), 20.40 -> 20.17 % (ResNeXt-101)"}
    cells = [Cell((model, "none"), model, ("none",))]
    cells += [
        Cell((model, f"Dropout {ratio:g}"), model, (f"last=dropout:{ratio:g}",), papers.get(ratio, NOT_AVAILABLE))
        for ratio in _RATIOS
    ]
    return Experiment(
        "last",
        "Dropout downstream of the last BatchNorm shifts nothing, and helps",
        ("network", "noise at last"),
        tuple(cells),
    )


def _remedies(scale: Scale) -> Experiment:
    rows = (
        ("none", "none"),
        ("Dropout 0.5 at a", "a=dropout:0.5"),
        ("Dropout 0.5 at b", "b=dropout:0.5"),
        ("Uout 0.1 at a", "a=uout:0.1"),
        ("Dropout 0.1 at last", "last=dropout:0.1"),
    )
    models = (scale.networks["preresnet"], scale.networks["densenet"])
    return Experiment(
        "remedies",
        "Re-estimated statistics, Uout and Dropout downstream of the last BatchNorm each remedy the shift",
        ("network", "trained with"),
        tuple(Cell((model, label), model, (noise,)) for model in models for label, noise in rows),
        repairs=(RE_ESTIMATED, PAIRED),
    )


def _regularization(scale: Scale) -> Experiment:
    rows = (
        ("none", "none"),
        (_DROPOUT, "a=dropout:0.5"),
        ("Uout 0.5 at a", "a=uout:0.5"),
        ("Dropout 0.5 at last", "last=dropout:0.5"),
    )
    return Experiment(
        "regularization",
        "Uout, and Dropout downstream of the last BatchNorm, are better than no noise and than Dropout in each block",
        ("network", "trained with"),
        tuple(
            Cell((model, label), model, (noise,), changes=changes)
            for model, changes in scale.regularized.items()
            for label, noise in rows
        ),
        repairs=(OWN, REPAIRED),
        compared=((AS_TRAINED, "none"), (AS_TRAINED, _DROPOUT), (REPAIRED, OWN), (REPAIRED, "none")),
    )
