"""How often the 95 % intervals hold the truth, where the truth is known because the data is drawn from it.

    python benchmarks/coverage.py --trials 1000

Each interval is asked as a command asks it, from a sample of a population of activations of shape (N, channels,
positions) that is

    shuffled      without any structure
    ordered       by class, each class with means of its own, as a folder of images is; drawn by `choose_rows`
    correlated    channels and positions of a sample share a contrast and a factor, so that few numbers tell

and, for comparison, from the first samples of the ordered population, which no command takes. The columns are the
stored against the measured variance (`inspect`, `--method exact`), the shift that `--method paired` finds with one look
and with growing parts, the severity R, and the difference of a mean score (`--eval-data`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm
from vsfix.graph_passes.estimators.paired import growing_parts
from vsfix.graph_passes.noise_average.divergence import Meaning, NoisyOutputs, OutputKind
from vsfix.graph_passes.noise_average.severity import OutputReader, Reference
from vsfix.graph_passes.statistics.estimate import Interval, weigh
from vsfix.graph_passes.statistics.evidence import Evidence
from vsfix.graph_passes.statistics.moments import Moments
from vsfix.pipeline.comparison.score_difference import gain_interval
from vsfix.pipeline.data.samples import choose_rows

POPULATION, CLASSES, CHANNELS, POSITIONS = 8000, 10, 24, 16
KEPT = 0.5  # p of Dropout
REPEATS, DRAWS = 8, 16
NARROW = 0.03  # half the width of an interval with which the paired method is content
BOUNDS = (0.93, 0.97)
KINDS = ("shuffled", "ordered", "correlated", "ordered, its head")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """All samples that there are.

    Attributes:
        x: activations, (N, C, P).
        contrast: of each sample, which its outputs share, (N,).
    """

    x: Floats
    contrast: Floats

    @classmethod
    def of(cls, kind: str, seed: int) -> Population:
        """Draws one."""
        rng = np.random.default_rng(seed)
        x = rng.normal(0.4, 1, (POPULATION, CHANNELS, POSITIONS))
        contrast = np.ones(POPULATION)
        if kind.startswith("ordered"):
            labels = np.arange(POPULATION) * CLASSES // POPULATION
            x += rng.normal(0, 1, (CLASSES, CHANNELS, 1))[labels]
            contrast = np.exp(rng.normal(0, 0.4, CLASSES))[labels]
        if kind == "correlated":
            contrast = np.exp(rng.normal(0, 0.4, POPULATION))
            shared = rng.normal(0, 1, (POPULATION, 1, 1)) * rng.normal(0, 1, (1, CHANNELS, 1))
            x = contrast[:, None, None] * (0.5 * x + shared)
        return cls(x, contrast)


def batch_norm(mean: Floats, variance: Floats) -> BatchNorm:
    """One that stores these statistics."""
    parameters = [
        gs.Constant(name, value) for name, value in zip("gbmv", (1 + 0 * mean, 0 * mean, mean, variance), strict=True)
    ]
    x, y = gs.Variable("x"), gs.Variable("y")
    return BatchNorm("bn", gs.Node("BatchNormalization", inputs=[x, *parameters], outputs=[y]), tuple(parameters))


def common(ratios: Floats) -> float:
    """The geometric mean over the channels."""
    return float(np.exp(np.log(ratios).mean()))


def measured(population: Population, rows: Floats, _: np.random.Generator) -> tuple[Interval | None, float]:
    """The real variance over one that training left stored, which is off by a third in one direction or another."""
    truth = population.x.var(axis=(0, 2))
    stored = batch_norm(population.x.mean(axis=(0, 2)), truth * np.linspace(0.7, 1.3, CHANNELS))
    found = weigh(stored, Evidence.of_reestimation(stored, Moments.of(population.x[rows])))
    return found.interval, common(truth / stored.variance)


def paired_once(population: Population, rows: Floats, rng: np.random.Generator) -> tuple[Interval | None, float]:
    """The shift by Dropout, from all samples at once."""
    return _paired(population, rows, rng, [len(rows)])


def paired_growing(population: Population, rows: Floats, rng: np.random.Generator) -> tuple[Interval | None, float]:
    """The same from growing parts, until the interval is narrow; the interval that is reported."""
    return _paired(population, rows, rng, growing_parts(len(rows)))


def _paired(
    population: Population, rows: Floats, rng: np.random.Generator, parts: list[int]
) -> tuple[Interval | None, float]:
    mean, variance = population.x.mean(axis=(0, 2)), population.x.var(axis=(0, 2))
    trained = (variance + mean**2) / KEPT - mean**2
    stored = batch_norm(mean, trained)
    x = population.x[rows]
    noisy = np.stack([x * (rng.random(x.shape) < KEPT) / KEPT for _ in range(REPEATS)], axis=-1)
    for part in parts:
        on = Moments.of(noisy[:part].reshape(part, CHANNELS, -1))
        found = weigh(stored, Evidence.of_pair(stored, on, Moments.of(x[:part])), looks=len(parts))
        if found.half_width <= NARROW:
            break
    return found.interval, common(variance / trained)


def severity(population: Population, rows: Floats, rng: np.random.Generator) -> tuple[Interval | None, float]:
    """R of a regressor whose deployed output is off by what its contrast says."""
    contrast, apart = population.contrast[:, None], 1.2 * population.contrast[:, None] + population.x[:, :1, 0]
    truth = float((apart**2).mean() / (contrast**2).mean())
    draws = contrast[rows] * rng.normal(size=(DRAWS, len(rows), 1))
    kind = OutputKind(Meaning.VALUES, "values", -1, "")
    reference = Reference({"y": NoisyOutputs(kind, draws)}, {"y": OutputReader(kind, None)})
    found = reference.severity({"y": apart[rows]}, seed=int(rng.integers(1 << 30)))
    return (found.low, found.high), truth


def scores(population: Population, rows: Floats, _: np.random.Generator) -> tuple[Interval | None, float]:
    """The mean squared error of one model less that of another."""
    first, second = (population.x[:, channel, 0] ** 2 for channel in (0, 1))
    return gain_interval(-first[rows], -second[rows]), float((first - second).mean())


Interviewed = Callable[[Population, Floats, np.random.Generator], tuple[Interval | None, float]]
COLUMNS: dict[str, Interviewed] = {
    "stored against measured": measured,
    "paired, one look": paired_once,
    "paired, growing parts": paired_growing,
    "R": severity,
    "mean score": scores,
}


def coverage(kind: str, samples: int, trials: int, seed: int) -> Iterator[tuple[str, float]]:
    """The share of the intervals that hold the truth, column by column."""
    population = Population.of(kind, seed)
    for name, asked in COLUMNS.items():
        held = 0
        for trial in range(trials):
            rng = np.random.default_rng((seed, samples, trial))
            rows = choose_rows(POPULATION, samples, int(rng.integers(1 << 30)), kind)
            if kind.endswith("head"):
                first = int(rng.integers(POPULATION - samples))
                rows = np.arange(first, first + samples)
            interval, truth = asked(population, rows, rng)
            held += interval is not None and interval[0] <= truth <= interval[1]
        yield name, held / trials


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="for each number (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args()
    print("| data | samples |", " | ".join(COLUMNS), "|")
    print("| --- " * (2 + len(COLUMNS)) + "|")
    chance = 2 * (0.05 * 0.95 / options.trials) ** 0.5  # two standard errors of a share of so many trials
    low, high = BOUNDS[0] - chance, BOUNDS[1] + chance
    missed = 0
    for kind in KINDS:
        for samples in (64, 256):
            found = dict(coverage(kind, samples, options.trials, options.seed))
            print(
                "|",
                kind,
                "|",
                samples,
                "|",
                " | ".join(f"{100 * share:.1f}" for share in found.values()),
                "|",
                flush=True,
            )
            if not kind.endswith("head"):
                missed += sum(not low <= share <= high for share in found.values())
    print(f"{missed} outside of {100 * low:.1f} to {100 * high:.1f} %, the head left out")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
