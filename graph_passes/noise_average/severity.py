"""R: how far the deployed network is from the one that was trained, in units of what one draw of the noise does.

    R = D(F, f(.; 1)) / E_n D(F, f(.; n))        D of `divergence`; several outputs add up

1 says that switching the noise off moved the outputs as far from those of the trained network as one draw of it does;
0 that they are the same. Distances are skewed, so that the quantiles of resampled R are too narrow; the interval is
that of the bootstrap-t over the samples, under a seed: with the error s of R from u_i = D_i - R N_i, and R* and s* of a
resample,

    t* = (R* - R) / s*        interval = R - s t*_97.5 .. R - s t*_2.5

Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 12.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from vsfix.graph_passes.errors import DataError, UncomparableError
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.statistics.jackknife import effective_degrees, student_t

from .divergence import Meaning, NoisyOutputs, OutputKind

# Of R, below which a file stays as it is; both follow from the ladder of networks (docs/methods.md). Where an output
# is a value, D is the squared error itself, and to be nearer is to be better: at 0.1 a regressor still gained 0.02 of
# R2. Where it decides, D is not what is counted: up to 0.8 a repair gained two points on one network and lost eight of
# overlap on another.
HEALTHY = 0.85
HEALTHY_VALUES = 0.05
# What decides may gain below the bound too: from here on that is not clear, and from the second where decisions differ.
OPEN = 0.4
OPEN_DECISIONS = 0.1
MANY_DECISIONS = 0.05  # the share that differs from the average's; 7 to 16 % cost small networks 3 to 5 points
_LEVEL = 0.95  # of an interval
_FIRST_LEVEL = 0.975  # of the one that ends a measurement early: both looks together are then held to the other
_REPETITIONS = 1000
_LEAST_NOISE = 1e-6  # of the mean over the samples: a resample may have none, or less
_LEAST_ERROR = 0.25  # of a resample, beside that of the samples: one of few has hardly any
_FLIPS = 9999
_DRAWN_AT_ONCE = 1 << 16  # numbers; all resamples or signs of a large set would take more memory than its outputs
_FEW_SIGNS = 13  # differences, of which every pattern of signs is tried: no more than `_FLIPS`
_SUM_ROUNDING = 1e-12  # of a sum, whose terms come in another order
_ROUNDING_OF_RUNS = 1e-6  # of the size of an output: what runs of one network may differ by
_TOGETHER = (Meaning.CLASSES, Meaning.DIRECTIONS)  # the values of a position mean something together alone
_LARGEST_DRAWS = 1 << 28  # bytes of all outputs under all draws


@dataclass(frozen=True)
class Severity:
    """R of one network on one set.

    Attributes:
        ratio: R.
        low: lower end of its 95 % interval.
        high: upper end.
        samples: how many it rests on.
        changed: the share of decisions in which the deployed network differs from F; None where nothing is decided.
        bound: of R, below which the file stays as it is.
    """

    ratio: float
    low: float
    high: float
    samples: int
    changed: float | None = None
    bound: float = HEALTHY

    @property
    def is_healthy(self) -> bool:
        """Whether the file stays as it is."""
        return self.ratio < self.bound

    @property
    def is_open(self) -> bool:
        """Whether it stays as it is although a repair may gain, or cost, something that R does not tell.

        So it is too where the interval of R reaches past the bound: more samples may tell.
        """
        many = self.changed is not None and self.changed >= MANY_DECISIONS
        return self.is_healthy and (self.ratio >= (OPEN_DECISIONS if many else OPEN) or self.is_uncertain)

    @property
    def is_uncertain(self) -> bool:
        """Whether R may lie on the other side of its bound."""
        return self.low < self.bound <= self.high

    @property
    def is_clear(self) -> bool:
        """Whether the file stays as it is, nothing is open, and the whole interval of R says so."""
        many = self.changed is not None and self.changed >= MANY_DECISIONS / 2
        return self.high < min(self.bound, OPEN_DECISIONS if many else OPEN)

    @property
    def doubt(self) -> str:
        """What it leaves open, in words; `is_open`."""
        number = f"R = {self.ratio:.2f}"
        if self.is_uncertain:
            interval = f"({self.low:.2f} to {self.high:.2f})"
            return f"{number} {interval} may lie past its bound, {self.bound}: more samples would tell"
        return f"{number} does not tell whether what is decided would be better after a repair"


@dataclass(frozen=True)
class OutputReader:
    """Turns what a runtime gives for one output into what is compared.

    Attributes:
        kind: how the output is read.
        chosen: which of its positions are compared; None for all.
    """

    kind: OutputKind
    chosen: Array | None

    @classmethod
    def of(cls, kind: OutputKind, output: Array, samples: int, draws: int, outputs: int) -> OutputReader:
        """A reader that keeps what fits into memory under so many draws, by a fixed rule.

        Args:
            kind: how the output is read.
            output: what it is for all samples.
            samples: N.
            draws: K.
            outputs: how many share the memory.

        Raises:
            DataError: the first axis of the output is not that of the samples.
        """
        if output.ndim < 1 or len(output) < samples or len(output) % samples:
            raise DataError(
                f"an output of shape {output.shape} does not hold {samples} samples on its first axis, so it can't be "
                "compared sample by sample"
            )
        positions, classes = _positions_and_classes(kind, kind.probabilities(output[: max(1, len(output) // samples)]))
        room = max(_LARGEST_DRAWS // (4 * draws * samples * classes * outputs), 1)
        if positions <= room:
            return cls(kind, None)
        return cls(kind, np.sort(np.random.default_rng(positions).choice(positions, room, replace=False)))

    def __call__(self, output: Array, samples: int) -> Float64Array:
        """The output in the form that is compared, its first axis that of the samples."""
        values = self.kind.probabilities(output)
        values = values.reshape(samples, len(values) // samples, *values.shape[1:])
        if self.chosen is None:
            return values
        classes = values.shape[-1] if self.kind.meaning in _TOGETHER else 1
        return values.reshape(samples, -1, classes)[:, self.chosen]


def _positions_and_classes(kind: OutputKind, one: Float64Array) -> tuple[int, int]:
    """How many positions an output of one sample has, and the values that stay together at each."""
    classes = one.shape[-1] if kind.meaning in _TOGETHER else 1
    return one.size // classes, classes


@dataclass(frozen=True)
class Reference:
    """F on one set, for every output that can be averaged.

    Attributes:
        outputs: under every draw, by name.
        readers: of the same outputs.
    """

    outputs: Mapping[str, NoisyOutputs]
    readers: Mapping[str, OutputReader]

    def __post_init__(self) -> None:
        if not self.outputs:
            raise UncomparableError(
                "the model has no floating-point output that holds the samples, so nothing can be averaged"
            )

    def read(self, found: Mapping[str, Array]) -> dict[str, Float64Array]:
        """What a runtime gave over all samples, in the form in which it is compared."""
        return {name: self.readers[name](found[name], noisy.draws.shape[1]) for name, noisy in self.outputs.items()}

    def distances(self, found: Mapping[str, Array]) -> Float64Array:
        """D(F, q) of each sample, all outputs together, shape (N,).

        Args:
            found: q: the outputs of a network over the same samples in the same order, by name.
        """
        read = self.read(found)
        return np.asarray(np.sum([noisy.distance(read[name]) for name, noisy in self.outputs.items()], axis=0))

    def noise_distances(self) -> Float64Array:
        """E_n D(F, f(.; n)) of each sample, shape (N,)."""
        return np.asarray(np.sum([noisy.noise_distance() for noisy in self.outputs.values()], axis=0))

    def severity(self, found: Mapping[str, Array], seed: int = 0, *, is_first: bool = False) -> Severity:
        """R of a network from its outputs; of the first of two looks the interval is the wider one."""
        level = _FIRST_LEVEL if is_first else _LEVEL
        known = severity_of(self.distances(found), self.noise_distances(), self.changed(found), seed, level)
        return replace(known, bound=self.bound)

    @property
    def bound(self) -> float:
        """Of R, below which a file stays as it is: the higher one where any output decides something."""
        none_decides = all(noisy.kind.meaning.is_squared for noisy in self.outputs.values())
        return HEALTHY_VALUES if none_decides else HEALTHY

    def changed(self, found: Mapping[str, Array]) -> float | None:
        """The share of decisions that differ from those of F; None where no output decides anything."""
        read = self.read(found)
        shares = []
        for name, noisy in self.outputs.items():
            ours, theirs = noisy.kind.decisions(read[name]), noisy.kind.decisions(noisy.mean)
            if ours is not None and theirs is not None:
                shares.append(float(np.mean(ours != theirs)))
        return float(np.mean(shares)) if shares else None

    def rows(self, chosen: Array) -> Reference:
        """The same for some of the samples, shape (N,) of bools."""
        part = {name: NoisyOutputs(noisy.kind, noisy.draws[:, chosen]) for name, noisy in self.outputs.items()}
        return Reference(part, self.readers)


def severity_of(
    apart: Float64Array, noise: Float64Array, changed: float | None = None, seed: int = 0, level: float = _LEVEL
) -> Severity:
    """R from the distances of single samples.

    Args:
        apart: D(F, f(.; 1)), shape (N,).
        noise: E_n D(F, f(.; n)), shape (N,).
        changed: see `Severity`.
        seed: of the bootstrap.
        level: of the interval.

    Raises:
        DataError: fewer than two samples.
        UncomparableError: noise that does nothing.
    """
    if len(apart) < 2:
        raise DataError("one sample can't tell how far a network is from its average; give at least 8")
    if not noise.mean() > 0:
        raise UncomparableError("the noise changes no output on this data: nothing can be compared with it")
    ratio = float(apart.mean() / noise.mean())
    low, high = _ratio_interval(apart, noise, np.random.default_rng((seed, len(apart))), level)
    return Severity(max(ratio, 0.0), max(low, 0.0), max(high, 0.0), len(apart), changed)


def _ratio_interval(
    apart: Float64Array, noise: Float64Array, rng: np.random.Generator, level: float
) -> tuple[float, float]:
    """The interval of R, see the module's docstring."""
    ratio = float(apart.mean() / noise.mean())
    error = float(np.sqrt(np.mean((apart - ratio * noise) ** 2) / len(apart)) / noise.mean())
    if not error > 0:
        return ratio, ratio
    above, below, squares, products, of_noise = _resampled_means(rng, apart, noise, apart**2, apart * noise, noise**2)
    below = np.maximum(below, _LEAST_NOISE * noise.mean())
    ratios = above / below
    spreads = np.maximum(squares - 2 * ratios * products + ratios**2 * of_noise, 0)
    errors = np.sqrt(spreads / len(apart)) / below
    t = (ratios - ratio) / np.maximum(errors, _LEAST_ERROR * error)
    places = np.array([(1 - level) / 2, (1 + level) / 2]) * (len(t) - 1)
    low, high = np.interp(places, np.arange(len(t)), np.sort(t))  # as np.quantile, which loads masked arrays first
    error *= (len(apart) / (len(apart) - 1)) ** 0.5  # s from the samples themselves is that much too small
    return ratio - error * float(high), ratio - error * float(low)


def mean_interval(values: Float64Array) -> tuple[float, float]:
    """The 95 % interval of a mean, by Student's t; a few large values leave it fewer degrees of freedom.

    Args:
        values: shape (N,), N of at least 2.
    """
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    margin = student_t(min(effective_degrees(values[:, None]), len(values) - 1)) * error
    return float(values.mean()) - margin, float(values.mean()) + margin


def _resampled_means(rng: np.random.Generator, *columns: Float64Array) -> Float64Array:
    """The means of each column, shape (N,), over the same resamples, shape (len(columns), _REPETITIONS)."""
    count = len(columns[0])
    at_once = max(1, _DRAWN_AT_ONCE // count)
    means = np.empty((len(columns), _REPETITIONS))
    for first in range(0, _REPETITIONS, at_once):
        rows = rng.integers(0, count, (min(at_once, _REPETITIONS - first), count))
        means[:, first : first + len(rows)] = [column[rows].mean(axis=1) for column in columns]
    return means


def sign_flip_p_value(differences: Float64Array) -> float:
    """How often the mean of paired differences is as low as it is, if each could as well have the opposite sign.

    A permutation test: no distribution is assumed, which matters for distances, whose few largest values are far from
    the rest. One-sided; the same values give the same number; every pattern of signs is tried where there are few, so
    that the number is exact. Values that are not finite are no evidence: 1.

    Args:
        differences: shape (N,).
    """
    count = len(differences)
    if not np.isfinite(differences).all():
        return 1.0
    bound = differences.sum() + _SUM_ROUNDING * np.abs(differences).sum()
    if count <= _FEW_SIGNS:  # every pattern, once
        patterns = np.arange(1 << count)[:, None] >> np.arange(count) & 1
        return float(np.mean((1.0 - 2.0 * patterns) @ differences <= bound))
    rng = np.random.default_rng(count)
    at_once = max(1, _DRAWN_AT_ONCE // count)
    as_low = 0
    for first in range(0, _FLIPS, at_once):
        signs = rng.choice([-1.0, 1.0], (min(at_once, _FLIPS - first), count))
        as_low += int(np.sum(signs @ differences <= bound))
    return (1 + as_low) / (1 + _FLIPS)


class DrawCollector:
    """Collects the outputs of single draws.

    Args:
        readers: of the outputs.
        draws: K.
        samples: N.
    """

    def __init__(self, readers: Mapping[str, OutputReader], draws: int, samples: int) -> None:
        self._readers = readers
        self._draws = draws
        self._samples = samples
        self._kept: dict[str, Array] = {}

    def add(self, place: int, first: int, count: int, outputs: Mapping[str, Array]) -> None:
        """Keeps the outputs of one run.

        Args:
            place: of the draw among the draws.
            first: the number of its first sample.
            count: of its samples.
            outputs: by name.

        Raises:
            UncomparableError: a value that is not finite.
        """
        for name, reader in self._readers.items():
            if not np.isfinite(outputs[name]).all():
                raise UncomparableError(f"output '{name}' is not finite with the noise on")
            values = reader(outputs[name], count)
            if name not in self._kept:
                self._kept[name] = np.empty((self._draws, self._samples, *values.shape[1:]), dtype=np.float32)
            self._kept[name][place, first : first + count] = values

    def reference(self, draws: int | None = None) -> Reference:
        """F from the first draws, or all: of the outputs that the noise reaches, unless it reaches none."""
        outputs = {name: NoisyOutputs(self._readers[name].kind, kept[:draws]) for name, kept in self._kept.items()}
        noisy = {name: output for name, output in outputs.items() if _is_noisy(output)}
        return Reference(noisy or outputs, self._readers)

    def tell_noise(self, draws: int, reached: Collection[str]) -> bool:
        """Whether noise was seen in most samples of every output that it reaches: what is rare takes all draws.

        Args:
            draws: how many were collected.
            reached: the names of the outputs that are downstream of noise.
        """
        return all(_changed_samples(self._kept[name][:draws]) >= 0.5 for name in self._kept if name in reached)


def _changed_samples(draws: Array) -> float:
    """The share of the samples that differ from draw to draw by more than their rounding; shape (K, N, ...)."""
    first = draws[0].astype(np.float64)
    axes = tuple(range(1, first.ndim))
    apart = np.max([np.mean((draw - first) ** 2, axis=axes) for draw in draws[1:]], axis=0)
    return float(np.mean(apart > _ROUNDING_OF_RUNS**2 * np.mean(first**2, axis=axes)))


def _is_noisy(output: NoisyOutputs) -> bool:
    """Whether an output differs from draw to draw by more than its rounding."""
    first = output.draws[0].astype(np.float64)
    size = float(np.mean(first**2))
    apart = max(float(np.mean((draw - first) ** 2)) for draw in output.draws[1:])  # one draw after the other
    return apart > _ROUNDING_OF_RUNS**2 * size
