"""The summary of the runs of an experiment: mean and deviation over the seeds, as a table, Markdown and JSON.

    accuracy            top-1 in per cent, as trained and after each repair
    shift ratio         of the first BatchNorm directly downstream of noise, which nothing but that noise shifts,
                        and the geometric mean of all such, where the shifts of one layer reach the next
    mismatch            max(r, 1/r) of all BatchNorms, geometric mean; and that of the worst BatchNorm
    difference          top-1 less that of another row, seed by seed, with Student's interval: runs of one seed share
                        their images, their order and, in one network, their first weights

The deviation is that of a sample, with n - 1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from vsfix.graph_passes.statistics.jackknife import student_t

from .experiments import Cell, Experiment
from .trial import AS_TRAINED, REPAIRS, TrialResult


@dataclass(frozen=True)
class Spread:
    """A number over several runs.

    Attributes:
        mean: their mean.
        deviation: their standard deviation; NaN for a single run.
        runs: how many.
    """

    mean: float
    deviation: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Of the values; None where there are none."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan, len(values))

    def text(self, digits: int) -> str:
        """Mean and deviation, as `80.12 ± 0.34`."""
        spread = "" if math.isnan(self.deviation) else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences.

    Attributes:
        mean: of the pairs.
        low: where the 95 % interval of the true mean begins; NaN for a single pair.
        high: where it ends.
        runs: how many pairs.
    """

    mean: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Difference | None:
        """Of the differences; None where there are none."""
        if not values:
            return None
        mean, margin = statistics.fmean(values), math.nan
        if len(values) > 1:
            margin = student_t(len(values) - 1, 0.05) * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - margin, mean + margin, len(values))

    def text(self, digits: int) -> str:
        """Mean and interval, as `+0.52 (-0.10 to +1.14)`."""
        mean, low, high = (f"{round(value, digits) + 0.0:+.{digits}f}" for value in (self.mean, self.low, self.high))
        return mean if math.isnan(self.low) else f"{mean} ({low} to {high})"


@dataclass(frozen=True)
class Row:
    """One cell with its numbers.

    Attributes:
        cell: the row of the experiment.
        runs: how many of its runs are finished.
        numbers: by the heading of their column, those of `COLUMNS` and then the differences; None where there is none.
    """

    cell: Cell
    runs: int
    numbers: Mapping[str, Spread | Difference | None]


@dataclass(frozen=True)
class Summary:
    """One table.

    Attributes:
        experiment: what was asked.
        rows: in the order of its cells.
    """

    experiment: Experiment
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "experiment": self.experiment.name,
            "claim": self.experiment.claim,
            "rows": [
                dict(zip(self.experiment.headings, row.cell.labels, strict=True))
                | {"runs": row.runs, "paper": row.cell.paper}
                | {name: None if spread is None else vars(spread) for name, spread in row.numbers.items()}
                for row in self.rows
            ],
        }

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Headings and texts, as a table shows them."""
        columns = [name for name in self._columns() if any(row.numbers[name] for row in self.rows)]
        lines = [
            [
                *row.cell.labels,
                str(row.runs),
                *(_text(row.numbers[name], COLUMNS[name][1] if name in COLUMNS else 2) for name in columns),
                row.cell.paper,
            ]
            for row in self.rows
        ]
        return [*self.experiment.headings, "runs", *columns, "paper"], lines

    def _columns(self) -> list[str]:
        """Those that belong to this table; repairs may have been measured for another one."""
        asked = [_top_1(form) for form in (AS_TRAINED, *self.experiment.repairs)]
        differences = [_difference(*pair) for pair in self.experiment.compared]
        shown = [name for name in COLUMNS if name in asked or name in _SHIFT_COLUMNS]
        return [*asked, *differences, "mismatch"] if differences else shown


def summarize(experiment: Experiment, results: Mapping[Cell, Sequence[TrialResult | None]]) -> Summary:
    """Takes together the finished runs of each cell.

    Args:
        experiment: the table.
        results: of each cell, one for each seed in the same order; None where a run has none.
    """
    rows = []
    for cell in experiment.cells:
        found = [result for result in results.get(cell, ()) if result is not None]
        numbers: dict[str, Spread | Difference | None] = {}
        for name, (measure, _) in COLUMNS.items():
            values = [measure(result) for result in found]
            numbers[name] = Spread.of([value for value in values if value is not None])
        for form, label in experiment.compared:
            numbers[_difference(form, label)] = _compare(experiment, results, cell, form, label)
        rows.append(Row(cell, len(found), numbers))
    return Summary(experiment, tuple(rows))


def _compare(
    experiment: Experiment, results: Mapping[Cell, Sequence[TrialResult | None]], cell: Cell, form: str, label: str
) -> Difference | None:
    """Top-1 of a form of a cell less what `Experiment.compared` says; None for a number less itself."""
    other, less = cell, label
    if label not in REPAIRS:
        (other,) = (one for one in experiment.cells if (one.model, one.labels[-1]) == (cell.model, label))
        less = AS_TRAINED
    if (other, less) == (cell, form):
        return None
    pairs = zip(results.get(cell, ()), results.get(other, ()), strict=False)
    known = [(one.accuracy_of(form), base.accuracy_of(less)) for one, base in pairs if one and base]
    return Difference.of([100 * (value - base) for value, base in known if value is not None and base is not None])


def summary_table(summary: Summary) -> Table:
    """The table of a terminal."""
    headings, lines = summary.cells()
    table = Table(title=f"{summary.experiment.name}. {_heading(summary)}", title_justify="left")
    labels = len(summary.experiment.headings)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < labels or heading == "paper" else "right")
    for line in lines:
        table.add_row(*line)
    return table


def markdown_table(summary: Summary) -> str:
    """The table of a page."""
    headings, lines = summary.cells()
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, ["---"] * len(headings), *lines]) + "\n"


def _heading(summary: Summary) -> str:
    return f"The paper's claim: {summary.experiment.claim}."


def markdown_page(summary: Summary, facts: Mapping[str, str]) -> str:
    """The table with the claim, what was run, and what its numbers are.

    Args:
        summary: the table.
        facts: what was run, label and value.
    """
    said = ", ".join(f"{label} {value}" for label, value in facts.items())
    return f"{_heading(summary)}\n\n{markdown_table(summary)}\n{LEGEND}\n\n{said}\n"


def mismatch_of(result: TrialResult, epoch: int | None = None) -> list[float]:
    """The mismatch of each BatchNorm after an epoch, the last logged one where none is given; in network order."""
    last = max((row.epoch for row in result.shift), default=0) if epoch is None else epoch
    return [row.mismatch for row in result.shift if row.epoch == last]


def _downstream_of_noise(result: TrialResult) -> list[float]:
    """The shift ratios of the BatchNorms directly downstream of a noise layer at the end, in network order."""
    last = max((row.epoch for row in result.shift), default=0)
    rows = [row for row in result.shift if row.epoch == last and row.batch_norm in result.behind_noise]
    return [row.shift_ratio for row in rows]


def _first_downstream_of_noise(result: TrialResult) -> float | None:
    return next(iter(_downstream_of_noise(result)), None)


def _all_downstream_of_noise(result: TrialResult) -> float | None:
    return statistics.geometric_mean(_downstream_of_noise(result)) if result.behind_noise else None


def _accuracy(form: str) -> Callable[[TrialResult], float | None]:
    """What measures top-1 of a form in per cent."""

    def measure(result: TrialResult) -> float | None:
        share = result.accuracy_of(form)
        return None if share is None else 100 * share

    return measure


def _top_1(form: str) -> str:
    """The heading of the accuracy of a form."""
    if form == AS_TRAINED:
        return "top-1 %"
    return f"{form}, top-1 %" if REPAIRS[form].own else f"{form}, {REPAIRS[form].images} images, top-1 %"


def _difference(form: str, label: str) -> str:
    """The heading of a difference."""
    form, label = (name.partition(",")[0] for name in (form, label))
    return f"minus {label}" if form == AS_TRAINED else f"{form} minus {label}"


def _text(number: Spread | Difference | None, digits: int) -> str:
    return "-" if number is None else number.text(digits)


LEGEND = (
    "Mean ± standard deviation over the runs. Shift ratio: real variance over the stored one, 1 is no shift; mismatch: "
    "the larger over the smaller of the two, over all BatchNorms, and of the worst. Minus: percentage points, seed by "
    "seed, with the 95 % interval of Student's t. The paper's numbers are of its own data and networks."
)
_SHIFT_COLUMNS: Mapping[str, tuple[Callable[[TrialResult], float | None], int]] = {
    "shift ratio behind the first noise": (_first_downstream_of_noise, 4),
    "behind all noise": (_all_downstream_of_noise, 4),
    "mismatch": (lambda result: statistics.geometric_mean(mismatch_of(result)), 3),
    "worst mismatch": (lambda result: max(mismatch_of(result)), 3),
}
COLUMNS = {_top_1(form): (_accuracy(form), 2) for form in (AS_TRAINED, *REPAIRS)} | dict(_SHIFT_COLUMNS)
"""The columns: what is taken of a run, and its decimals."""
