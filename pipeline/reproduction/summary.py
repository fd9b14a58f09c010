"""The summary of the runs of an experiment: mean and deviation over the seeds, as a table, Markdown and JSON.

    accuracy            top-1 in per cent, as trained and after each repair
    shift ratio         of the first BatchNorm directly downstream of noise, which nothing but that noise shifts,
                        and the geometric mean of all such, where the shifts of one layer reach the next
    mismatch            max(r, 1/r) of all BatchNorms, geometric mean; and that of the worst BatchNorm

The deviation is that of a sample, with n - 1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from .experiments import Cell, Experiment
from .trial import REPAIRS, TrialResult


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
class Row:
    """One cell with its numbers.

    Attributes:
        cell: the row of the experiment.
        runs: how many of its runs are finished.
        numbers: by the heading of their column; None where there is none.
    """

    cell: Cell
    runs: int
    numbers: Mapping[str, Spread | None]


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
        hidden = () if self.experiment.repaired else _REPAIR_COLUMNS  # measured for another table
        columns = [name for name in COLUMNS if name not in hidden and any(row.numbers[name] for row in self.rows)]
        lines = [
            [
                *row.cell.labels,
                str(row.runs),
                *(_text(row.numbers[name], COLUMNS[name][1]) for name in columns),
                row.cell.paper,
            ]
            for row in self.rows
        ]
        return [*self.experiment.headings, "runs", *columns, "paper"], lines


def summarize(experiment: Experiment, results: Mapping[Cell, Sequence[TrialResult]]) -> Summary:
    """Takes together the finished runs of each cell."""
    rows = []
    for cell in experiment.cells:
        found = results.get(cell, ())
        numbers = {}
        for name, (measure, _) in COLUMNS.items():
            values = [measure(result) for result in found]
            numbers[name] = Spread.of([value for value in values if value is not None])
        rows.append(Row(cell, len(found), numbers))
    return Summary(experiment, tuple(rows))


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


def _repair(name: str) -> Callable[[TrialResult], float | None]:
    return lambda result: None if result.repairs is None else 100 * result.repairs[name]


def _text(spread: Spread | None, digits: int) -> str:
    return "-" if spread is None else spread.text(digits)


LEGEND = (
    "Mean ± standard deviation over the runs. Shift ratio: real variance over the stored one, 1 is no shift; mismatch: "
    "the larger over the smaller of the two, over all BatchNorms, and of the worst. The paper's numbers are of its own "
    "data and networks."
)
_REPAIR_COLUMNS = {f"{name}, {images} images, top-1 %": name for name, (_, images) in REPAIRS.items()}
COLUMNS: Mapping[str, tuple[Callable[[TrialResult], float | None], int]] = {
    "top-1 %": (lambda result: 100 * result.accuracy, 2),
    **{column: (_repair(name), 2) for column, name in _REPAIR_COLUMNS.items()},
    "shift ratio behind the first noise": (_first_downstream_of_noise, 4),
    "behind all noise": (_all_downstream_of_noise, 4),
    "mismatch": (lambda result: statistics.geometric_mean(mismatch_of(result)), 3),
    "worst mismatch": (lambda result: max(mismatch_of(result)), 3),
}
"""The columns: what is taken of a run, and its decimals."""
