"""The targets of the ladder, as checks that return a sentence for each one that is missed.

Differences are taken test row by test row, as means over the seeds, with a 95 % bootstrap interval; metrics are in
percentage points for classes and masks, in R2 for numbers. Every check holds for each output of a network. A check
whose measurements are not there yet says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from ladder_measure import (
    AS_TRAINED,
    AUTO_32,
    AUTO_256,
    NO_DATA,
    NOISE_AVERAGE,
    ONE_PASS,
    ORACLE,
    Measurement,
)
from ladder_networks import Rung
from ladder_scores import paired_interval
from ladder_tasks import Array, Kind

REPAIRED = (AUTO_32.name, AUTO_256.name, NO_DATA.name)
MOST_LOSS = {  # in points, in R2
    AUTO_32.name: (0.3, 0.01),
    AUTO_256.name: (0.2, 0.003),
    NO_DATA.name: (0.3, 0.005),
}
ROOM, BETTER = 2.0, 1.0  # where the noise average is so much above the oracle, the repair is so much above it
SHARE_WITHOUT_DATA = 0.95
LEAST_GAIN = (1.0, 0.01)  # of 256 rows, below which a share of it says nothing
LEAST_RANK_CORRELATION = 0.8


@dataclass(frozen=True)
class Cell:
    """One network in one column: its measurements under all seeds, and the scores of their test rows."""

    folder: Path
    measurements: tuple[Measurement, ...] = field(default_factory=tuple)

    def __bool__(self) -> bool:
        return bool(self.measurements)

    def metric(self, output: str) -> float:
        """The mean over the seeds."""
        return float(np.mean([m.metrics[output] for m in self.measurements]))

    def loss(self, output: str) -> float:
        """The mean over the seeds."""
        return float(np.mean([m.losses[output] for m in self.measurements]))

    def scores(self, output: str) -> Array:
        """The mean over the seeds for each test row, float64, shape (M,)."""
        each = [_scores(m.scores_path(self.folder), output) for m in self.measurements]
        return np.asarray(np.mean(each, axis=0))


@lru_cache(maxsize=1024)
def _scores(path: Path, output: str) -> Array:
    with np.load(path) as arrays:
        return np.asarray(arrays[f"score_{output}"], dtype=np.float64)


@dataclass(frozen=True)
class Results:
    """All measurements of one folder."""

    folder: Path
    measurements: Sequence[Measurement]

    def of(self, rung: Rung, column: str) -> list[Measurement]:
        """The measurements of one network in one column, refused repairs too."""
        return [m for m in self.measurements if (m.stem, m.column) == (rung.stem, column)]

    def cell(self, rung: Rung, column: str) -> Cell:
        """Those of them that led to a file."""
        return Cell(self.folder, tuple(m for m in self.of(rung, column) if not m.error))

    def severity(self, rung: Rung) -> tuple[float, float, float, float] | None:
        """R, its interval and its bound, each the mean over the seeds of 256 rows; None where it was not measured."""
        found = [m.severity for m in self.of(rung, AUTO_256.name) if m.severity is not None]
        if not found:
            return None
        ratio, low, high, bound = np.mean(found, axis=0)
        return float(ratio), float(low), float(high), float(bound)


def misses(rungs: Sequence[Rung], results: Results) -> list[str]:
    """One sentence for each target that is missed."""
    found = []
    for rung in rungs:
        for check in (
            _refused,
            _reaches_noise_average,
            _beats_oracle,
            _does_no_damage,
            _works_without_data,
            _unchanged,
        ):
            found += [f"{rung.name}: {text}" for text in check(rung, results)]
    return found + list(_severity_tells(rungs, results))


def _refused(rung: Rung, results: Results) -> Iterator[str]:
    # One without noise may be refused, and without data one that needs nothing.
    for column in () if rung.healthy else REPAIRED if _is_severe(rung, results) else REPAIRED[:2]:
        for refused in [m for m in results.of(rung, column) if m.error]:
            yield f"{column}, seed {refused.seed}, was refused: {refused.error}"


def _is_severe(rung: Rung, results: Results) -> bool:
    severity = results.severity(rung)
    return severity is not None and severity[0] >= severity[3]


def _reaches_noise_average(rung: Rung, results: Results) -> Iterator[str]:
    repaired, average = results.cell(rung, AUTO_256.name), results.cell(rung, NOISE_AVERAGE)
    if not repaired or not average or not _is_severe(rung, results):
        return
    for output, kind in rung.kinds.items():
        mean, low, high = paired_interval(repaired.scores(output), average.scores(output))
        if high < 0:
            yield f"{output}: {shown(mean, low, high, kind)} from the noise average"


def _beats_oracle(rung: Rung, results: Results) -> Iterator[str]:
    cells = [results.cell(rung, name) for name in (AUTO_256.name, ORACLE.name, NOISE_AVERAGE)]
    if not all(cells) or not _is_severe(rung, results):
        return
    repaired, oracle, average = cells
    for output, kind in rung.kinds.items():
        if kind != "classes":
            continue
        mean, low, high = paired_interval(repaired.scores(output), oracle.scores(output))
        room = average.metric(output) - oracle.metric(output)
        if mean < (BETTER if room >= ROOM else 0):
            yield f"{output}: {shown(mean, low, high, kind)} from the oracle, the noise average is {room:+.2f} from it"


def _does_no_damage(rung: Rung, results: Results) -> Iterator[str]:
    before = results.cell(rung, AS_TRAINED)
    for column, most in MOST_LOSS.items():
        after = results.cell(rung, column)
        if not before or not after:
            continue
        for output, kind in rung.kinds.items():
            mean, low, high = paired_interval(after.scores(output), before.scores(output))
            # Without data only the size of a loss is bounded.
            if (high < 0 and column != NO_DATA.name) or mean < -_of_kind(most, kind):
                yield f"{column}: {output}: {shown(mean, low, high, kind)} from as trained"


def _works_without_data(rung: Rung, results: Results) -> Iterator[str]:
    before, with_data, without = (results.cell(rung, name) for name in (AS_TRAINED, AUTO_256.name, NO_DATA.name))
    if not before or not with_data or not without or not _is_severe(rung, results):
        return
    for output, kind in rung.kinds.items():
        gain = with_data.metric(output) - before.metric(output)
        share = (without.metric(output) - before.metric(output)) / gain if gain else 1.0
        if gain >= _of_kind(LEAST_GAIN, kind) and share < SHARE_WITHOUT_DATA:
            yield f"{output}: without data {share:.0%} of the gain with 256 rows"


def _unchanged(rung: Rung, results: Results) -> Iterator[str]:
    found = results.of(rung, AUTO_256.name) if rung.healthy else []
    if any(m.error for m in found):
        yield f"{AUTO_256.name}: a healthy network was refused: {found[0].error}"
    if not all(m.unchanged for m in found):
        yield f"{AUTO_256.name}: a parameter of a healthy network was changed"


def _severity_tells(rungs: Sequence[Rung], results: Results) -> Iterator[str]:
    correlation = severity_correlation(rungs, results)
    if correlation is not None and correlation < LEAST_RANK_CORRELATION:
        yield f"severity: rank correlation {correlation:.2f} with the true loss, wanted {LEAST_RANK_CORRELATION}"


def severity_correlation(rungs: Sequence[Rung], results: Results) -> float | None:
    """Spearman's correlation of R with the true loss; None below three networks."""
    pairs = []
    for rung in rungs:
        severity, lost = results.severity(rung), true_loss(rung, results)
        if severity is not None and lost is not None:
            pairs.append((severity[0], lost))
    if len(pairs) < 3:
        return None
    ranks = [_ranks(values) for values in zip(*pairs, strict=True)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Sequence[float]) -> Array:
    """Ranks from 0, ties sharing their mean."""
    array = np.asarray(values)
    return np.array([(array < value).sum() + ((array == value).sum() - 1) / 2 for value in array])


def true_loss(rung: Rung, results: Results) -> float | None:
    """The best metric of any column less that of the file as trained, in points or 100 R2, summed over the outputs."""
    before = results.cell(rung, AS_TRAINED)
    columns = {m.column for m in results.measurements} - {ONE_PASS}
    others = [cell for cell in (results.cell(rung, name) for name in sorted(columns)) if cell]
    if not before or not results.cell(rung, NOISE_AVERAGE):
        return None
    return sum(
        (max(cell.metric(output) for cell in others) - before.metric(output)) * _of_kind((1.0, 100.0), kind)
        for output, kind in rung.kinds.items()
    )


def _of_kind(pair: tuple[float, float], kind: Kind) -> float:
    """The number for percentage points, or that for R2."""
    return pair[1] if kind == "numbers" else pair[0]


def shown(mean: float, low: float, high: float, kind: Kind) -> str:
    """A difference and its interval."""
    digits = 4 if kind == "numbers" else 2
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
