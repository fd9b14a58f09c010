"""Which networks the verdicts are held against: everything about each is drawn at random, once, under a seed.

    20 healthy   14 without noise, 6 with Dropout behind the last BatchNorm alone
    30 noise     one to three kinds of places, each with a kind of noise and a ratio of its own
    10 spoilt    statistics unset, of an early epoch or of the last batch, or data preprocessed otherwise; 4 with noise

Ten of the sixty are given rows ordered by class, and each of the three forms of export falls to twenty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vsfix.graph_passes.noise.noise import Noise, NoiseKind

COUNT = 60
HEAD = "head"  # the place that no BatchNorm follows
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
FORMS = ("marked", "lost", "training")
FAULTS = (
    *["healthy"] * 14,
    *["healthy, noise at the head"] * 6,
    *["noise"] * 30,
    *("unset", "unset", "early epoch", "last batch", "0..255", "not centred"),
    *("unset and noise", "early epoch and noise", "0..255 and noise", "scaled twice and noise"),
)
PLACES = {
    "mlp": ("linear", "relu"),
    "mlp, ReLU before BatchNorm": ("relu", "norm"),
    "plain": ("convolution", "relu"),
    "one-dimensional": ("convolution", "relu"),
    "post-activation": ("convolution", "relu", "branch"),
    "pre-activation": ("convolution", "relu", "branch"),
    "dense": ("first", "second"),
    "tail": ("before", "after"),
}
TABLES = ("friedman1", "friedman1", "friedman2", "friedman3", "skewed", "diabetes", "breast_cancer", "wine")
_ELEMENTWISE = (NoiseKind.DROPOUT, NoiseKind.GAUSSIAN_DROPOUT, NoiseKind.UOUT)


@dataclass(frozen=True)
class Place:
    """Noise at one kind of place.

    Attributes:
        name: one of `PLACES` of the family, or `HEAD`.
        noise: what stands there.
        stages: the stages, or blocks, that have it, from 0.
    """

    name: str
    noise: Noise
    stages: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Draw:
    """One network.

    Attributes:
        number: from 0; also the seed of the training.
        family: one of `PLACES`.
        task: the name of its data, see `verdict_tasks`.
        places: where its noise is.
        fault: one of `FAULTS`.
        form: how it is exported, one of `FORMS`.
        is_older: whether the form `training` is written by torch's older exporter.
        is_ordered: whether its rows are ordered by class, or by target.
        momentum: of its BatchNorms.
    """

    number: int
    family: str
    task: str
    places: tuple[Place, ...]
    fault: str
    form: str
    is_older: bool
    is_ordered: bool
    momentum: float

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.number:02d}-{self.family.split(',')[0]}-{self.task}"

    @property
    def spoilt_by(self) -> str:
        """What else than noise is wrong; empty where nothing is."""
        first = self.fault.split(" and ")[0]
        return "" if first.startswith(("healthy", "noise")) else first


def draw_networks(seed: int = 0, count: int = COUNT) -> list[Draw]:
    """The first networks under a seed; equal ones in each call."""
    rng = np.random.default_rng(seed)
    faults, forms = rng.permutation(FAULTS), rng.permutation(np.repeat(FORMS, COUNT // len(FORMS)))
    families = rng.permutation(np.resize(list(PLACES), COUNT))
    ordered, steady = rng.permutation(COUNT) < COUNT // 6, rng.permutation(COUNT) < COUNT // 2
    plain = 0  # in training form, with no other noise than Dropout: the older exporter takes every second one of those
    found = []
    for number in range(COUNT):
        family, fault, form = str(families[number]), str(faults[number]), str(forms[number])
        task, places = _task(family, rng), _places(family, fault, form, rng)
        is_plain = form == "training" and all(place.noise.kind is NoiseKind.DROPOUT for place in places)
        plain += is_plain
        draw = Draw(
            number,
            family,
            task,
            places,
            fault,
            form,
            is_older=is_plain and plain % 2 == 0,
            is_ordered=bool(ordered[number]),
            momentum=0.02 if steady[number] else 0.1,
        )
        found.append(draw)
    return found[:count]


def _task(family: str, rng: np.random.Generator) -> str:
    if family.startswith("mlp"):
        return str(rng.choice([*TABLES, "digits"]))
    return "fashion" if family == "one-dimensional" else str(rng.choice(["digits", "fashion"]))


def _places(family: str, fault: str, form: str, rng: np.random.Generator) -> tuple[Place, ...]:
    """Where the noise is; in a quarter of the cases the first stage has another ratio than the others."""
    if "head" in fault:
        return (Place(HEAD, Noise(NoiseKind.DROPOUT, float(rng.choice(RATIOS)))),)
    if "noise" not in fault:
        return ()
    names: Sequence[str] = (*PLACES[family], HEAD)
    count = 1 + int(rng.choice(3, p=[0.5, 0.3, 0.2]))
    chosen = [PLACES[family][rng.integers(len(names) - 1)]]
    chosen += [str(name) for name in rng.permutation([name for name in names if name not in chosen])[: count - 1]]
    found = []
    for name in chosen:
        noise = _noise(family, name, form, rng)
        if name in (HEAD, "before", "after") or rng.random() > 0.25:
            found.append(Place(name, noise))
            continue
        other = Noise(noise.kind, float(rng.choice([ratio for ratio in RATIOS if ratio != noise.value])))
        found += [Place(name, noise, (0,)), Place(name, other, (1, 2))]
    return tuple(found)


def _noise(family: str, place: str, form: str, rng: np.random.Generator) -> Noise:
    """Dropout in most cases; channels are dropped where there are positions, paths at the end of a branch.

    PyTorch can't write the uniform numbers of Uout in training form; GaussianDropout takes its place there.
    """
    if place == "branch":
        kinds, shares = (NoiseKind.DROPOUT, NoiseKind.FEATURE_DROPOUT, NoiseKind.DROP_PATH), [0.3, 0.2, 0.5]
    elif family.startswith("mlp") or place in (HEAD, "after"):
        kinds, shares = _ELEMENTWISE, [0.7, 0.15, 0.15]
    else:
        kinds, shares = (*_ELEMENTWISE, NoiseKind.FEATURE_DROPOUT), [0.6, 0.1, 0.1, 0.2]
    kind = kinds[int(rng.choice(len(kinds), p=shares))]
    kind = NoiseKind.GAUSSIAN_DROPOUT if kind is NoiseKind.UOUT and form == "training" else kind
    return Noise(kind, float(rng.choice(RATIOS)))
