"""Trains one network of the verdicts, spoils it where its draw says so, exports it, and writes the truth beside it.

FOLDER/NAME/model.onnx    in the form that was drawn
FOLDER/NAME/lost.onnx     the same network with its noise lost
FOLDER/NAME/data.npz      500 rows of the training data, in the order and the preprocessing that were drawn
FOLDER/NAME/truth.json    `Truth`
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ladder_networks import fit
from ladder_scores import judge, paired_interval
from ladder_tasks import INPUT, Array
from torch import nn
from verdict_draws import Draw
from verdict_exports import equivalents, export_lost, export_marked, export_older, export_training, tensors_at
from verdict_networks import build_network
from verdict_tasks import Source, load_source

from vsfix.trainers.layers.noise_layers import DropPath, GaussianDropout, Uout

ROWS = 500
PASSES = 32
PROBE_ROWS = 8
EXPORTS = {"marked": export_marked, "lost": export_lost, "training": export_training}
_NOISE = (nn.modules.dropout._DropoutNd, Uout, DropPath, GaussianDropout)
_NORM = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class NoiseTruth:
    """One noise layer.

    Attributes:
        module: its name in the network.
        kind: as `NoiseKind` calls it.
        value: the drop ratio, or beta.
        reaches: the names of the BatchNorms whose input it changes.
        tensors: of lost.onnx, those on which it stood, and those at which it would do the same.
    """

    module: str
    kind: str
    value: float
    reaches: list[str]
    tensors: list[str]


@dataclass(frozen=True)
class Truth:
    """What is true of one network.

    Attributes:
        name: of the network.
        draw: as it was drawn.
        noise: its noise layers, in their order.
        best: what the network is worth on the test rows, repaired in the better way; top-1 in per cent, or 100 R2.
        deployed: what it is worth as it is, on the data that it is given.
        below_average: by how many points the deployed one is below the average over the noise, with a 95 % interval.
        below_reestimated: the same of the network with the statistics of the training rows, noise off.
        statistics_off: largest factor, over the BatchNorms, by which a variance of the sound network is off under its
            noise, geometric mean over the channels: what is left of chance and of a short training.
        seconds: of the training.
    """

    name: str
    draw: dict[str, Any]
    noise: list[NoiseTruth]
    best: float
    deployed: float
    below_average: tuple[float, float, float]
    below_reestimated: tuple[float, float, float]
    statistics_off: float
    seconds: float


def train_network(draw: Draw, folder: Path) -> Truth:
    """Trains a network and writes its files; the truth comes last, so that a folder that has it is complete."""
    started = time.perf_counter()
    place = folder / draw.name
    place.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(draw.number)
    source = load_source(draw.task, is_signal=draw.family == "one-dimensional")
    sound, spoilt = _trained(draw, source)
    seconds = time.perf_counter() - started
    rows = _calibration_rows(draw, source)
    np.savez(place / "data.npz", allow_pickle=False, **{INPUT: rows})
    example = torch.from_numpy(source.task.inputs[:4])
    write = export_older if draw.is_older else EXPORTS[draw.form]
    write(copy.deepcopy(spoilt), example, place / "model.onnx", source.output)
    export_lost(copy.deepcopy(spoilt), example, place / "lost.onnx", source.output)
    truth = Truth(
        draw.name,
        asdict(draw),
        _noise_truth(spoilt, source, place / "lost.onnx"),
        *_worth(draw, source, sound, spoilt),
        statistics_off=_statistics_off(sound, source),
        seconds=round(seconds, 1),
    )
    text = json.dumps(asdict(truth), indent=1, default=lambda kind: kind.value)
    (place / "truth.json").write_text(text + "\n")
    return truth


def _trained(draw: Draw, source: Source) -> tuple[nn.Module, nn.Module]:
    """The network with statistics that are true under its noise, and as it is deployed."""
    task = source.task
    module = build_network(draw, task.inputs.shape[1:], source.outputs)
    is_table = task.inputs.ndim == 2
    batch_size = 32 if len(task.inputs) < 1000 else 64
    epochs = max(6, round((1500 if is_table else 400) * batch_size / len(task.inputs)))
    early: dict[str, torch.Tensor] = {}
    if draw.spoilt_by == "early epoch":
        fit(module, task, max(1, epochs // 6), batch_size)
        early = {name: value.clone() for name, value in module.named_buffers()}
    fit(module, task, epochs, batch_size)
    module.eval()
    spoilt = copy.deepcopy(module)
    for name, layer in spoilt.named_modules():
        if not isinstance(layer, _NORM):
            continue
        if draw.spoilt_by == "unset":
            layer.reset_running_stats()
        elif early:
            layer.running_mean = early[f"{name}.running_mean"]
            layer.running_var = early[f"{name}.running_var"]
    if draw.spoilt_by == "last batch":
        _reestimate(spoilt, torch.from_numpy(task.inputs[:24]), noisy=True)
    return module, spoilt


@contextmanager
def _noise_on(module: nn.Module) -> Iterator[None]:
    """The noise on, and the BatchNorms as deployed."""
    for layer in module.modules():
        if isinstance(layer, _NOISE):
            layer.train()
    try:
        yield
    finally:
        module.eval()


@torch.no_grad()
def _reestimate(module: nn.Module, inputs: torch.Tensor, *, noisy: bool) -> None:
    """Writes the statistics of all inputs, run as one batch; the momentum is as before."""
    norms = [layer for layer in module.modules() if isinstance(layer, _NORM)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 1.0
        layer.train()
    if noisy:
        for layer in module.modules():
            if isinstance(layer, _NOISE):
                layer.train()
    module(inputs)
    module.eval()
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def _calibration_rows(draw: Draw, source: Source) -> Array:
    """Rows of the training data; ordered by class or target where drawn so."""
    target = source.task.targets[source.output].reshape(len(source.task.inputs))
    chosen = np.random.default_rng(draw.number).permutation(len(target))[:ROWS]
    if draw.is_ordered:
        chosen = chosen[np.argsort(target[chosen], kind="stable")]
    return source.preprocessed(source.task.inputs[chosen], draw.spoilt_by)


def _worth(draw: Draw, source: Source, sound: nn.Module, spoilt: nn.Module) -> tuple[Any, ...]:
    """`best`, `deployed`, `below_average` and `below_reestimated` of the truth."""
    test = torch.from_numpy(source.task.test_inputs)
    given = torch.from_numpy(source.preprocessed(source.task.test_inputs, draw.spoilt_by))
    deployed = scores(source, _outputs(source, spoilt, given))
    with _noise_on(sound):
        average = scores(source, sum(_outputs(source, sound, test) for _ in range(PASSES)) / PASSES)
    again = copy.deepcopy(sound)
    _reestimate(again, torch.from_numpy(source.task.inputs), noisy=False)
    reestimated = scores(source, _outputs(source, again, test))
    return (
        max(float(average.mean()), float(reestimated.mean())),
        float(deployed.mean()),
        paired_interval(average, deployed),
        paired_interval(reestimated, deployed),
    )


def scores(source: Source, outputs: Array) -> Array:
    """Of each test row 100 where the class is right, or its part of 100 R2; outputs are probabilities, or numbers."""
    found = judge(source.task, {source.output: outputs})[source.output].score
    return found if source.task.kinds[source.output] == "classes" else 100.0 * found


@torch.no_grad()
def _outputs(source: Source, module: nn.Module, inputs: torch.Tensor) -> Array:
    """Probabilities of classes, or numbers, float64, shape (N, K)."""
    outputs = torch.cat([module(part) for part in inputs.split(500)]).double()
    is_classes = source.task.kinds[source.output] == "classes"
    return np.asarray((outputs.softmax(1) if is_classes else outputs).numpy())


@torch.no_grad()
def _noise_truth(module: nn.Module, source: Source, lost: Path) -> list[NoiseTruth]:
    """Each noise layer with the BatchNorms that it reaches, found by switching it on alone."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _NOISE)}
    rows = torch.from_numpy(source.task.inputs[:PROBE_ROWS])
    quiet = _inputs_of(module, rows, (*_NOISE, _NORM))
    found = tensors_at(lost, rows.numpy(), {name: quiet[name] for name in layers})
    truths = []
    for name, layer in layers.items():
        layer.train()
        noisy = _inputs_of(module, rows, _NORM)
        layer.eval()
        kind, value = _noise_of(layer)
        reaches = [norm for norm, array in noisy.items() if not np.array_equal(array, quiet[norm])]
        truths.append(NoiseTruth(name, kind, value, reaches, equivalents(lost, found[name], kind)))
    return truths


def _inputs_of(module: nn.Module, rows: torch.Tensor, kinds: Any) -> dict[str, Array]:
    """What comes into each layer of some kinds, by the layer's name."""
    inputs: dict[str, Array] = {}

    def keep(name: str) -> Any:
        return lambda _, given: inputs.__setitem__(name, given[0].numpy().copy())

    hooks = [
        layer.register_forward_pre_hook(keep(name))
        for name, layer in module.named_modules()
        if isinstance(layer, kinds)
    ]
    module(rows)
    for hook in hooks:
        hook.remove()
    return inputs


def _noise_of(layer: nn.Module) -> tuple[str, float]:
    """Kind and value of a noise layer."""
    if isinstance(layer, Uout):
        return "uout", layer.beta
    if isinstance(layer, DropPath | GaussianDropout):
        return layer.kind.value, layer.ratio
    assert isinstance(layer, nn.modules.dropout._DropoutNd)
    return "dropout" if isinstance(layer, nn.Dropout) else "feature-dropout", layer.p


@torch.no_grad()
def _statistics_off(module: nn.Module, source: Source) -> float:
    """See `Truth`."""
    with _noise_on(module):
        inputs = _inputs_of(module, torch.from_numpy(source.task.inputs), _NORM)
    off = [1.0]
    for name, layer in module.named_modules():
        if isinstance(layer, _NORM):
            axes = tuple(axis for axis in range(inputs[name].ndim) if axis != 1)
            real = inputs[name].astype(np.float64).var(axes)
            stored = layer.running_var.numpy().astype(np.float64)
            used = (real > 1e-8) & (stored > 1e-8)
            off.append(float(np.exp(np.abs(np.log(stored[used] / real[used])).mean())))
    return round(max(off), 3)
