"""Every BatchNorm as one line, of a repair or of an inspection, and the table of them."""

from __future__ import annotations

from dataclasses import dataclass

from vsfix.graph_passes.estimate import Interval
from vsfix.pipeline.inspection import BatchNormRow
from vsfix.pipeline.repair_report import BatchNormOutcome

from .number_text import ratio, ratio_interval
from .sections import Report
from .table import Column, Table, make_table


@dataclass(frozen=True)
class BatchNormLine:
    """One BatchNorm.

    Attributes:
        number: its place in the graph, from 1 on.
        before: what was found.
        after: what was found after the repair; None where there was none.
        shift: the shift that the method found; None where none did.
        interval: of that shift, 95 %.
        status: `repaired` or `kept`; empty where nothing was tried.
        reason: how it was repaired, or why it was kept.
        fold: into what it was folded, or why not.
    """

    number: int
    before: BatchNormRow
    after: BatchNormRow | None = None
    shift: float | None = None
    interval: Interval | None = None
    status: str = ""
    reason: str = ""
    fold: str = ""

    @property
    def shift_after(self) -> float | None:
        """Measured after the repair."""
        return None if self.after is None else self.after.measured_shift

    @property
    def mismatch_after(self) -> float | None:
        """Measured after the repair."""
        return None if self.after is None else self.after.mismatch


def batch_norm_lines(report: Report) -> tuple[BatchNormLine, ...]:
    """The lines of what a report holds, in the order of the graph."""
    if report.repair is not None:
        return tuple(_repaired(number, outcome) for number, outcome in enumerate(report.repair.batch_norms, 1))
    rows = report.inspection.rows if report.inspection is not None else ()
    return tuple(BatchNormLine(number, row) for number, row in enumerate(rows, 1))


def batch_norm_table(lines: tuple[BatchNormLine, ...]) -> Table:
    """The table; columns that no line fills are left out."""
    return make_table(_COLUMNS, lines)


def _repaired(number: int, outcome: BatchNormOutcome) -> BatchNormLine:
    """The line of a BatchNorm that a repair has looked at."""
    action = outcome.action.removeprefix("kept: ")
    return BatchNormLine(
        number=number,
        before=outcome.before,
        after=outcome.after,
        shift=outcome.shift,
        interval=outcome.interval,
        status="repaired" if outcome.repaired else "kept",
        reason=f"{outcome.method} estimate" if action == "repaired" else action,
        fold=outcome.fold_reason if outcome.folded else f"no: {outcome.fold_reason}",
    )


def _noise(line: BatchNormLine) -> str:
    """The nearest noise layer, what it does and how far it is."""
    row = line.before
    if not row.noise:
        return "none"
    return f"{row.source} ({row.noise}, {row.distance})" if row.source else f"{row.noise}, {row.distance}"


def _predicted(line: BatchNormLine) -> float | None:
    """The shift by the closed form; behind a repair there are better numbers."""
    return None if line.after is not None else line.before.predicted_shift


def _estimate(line: BatchNormLine) -> str:
    """The shift that the method found, and its interval."""
    return ratio(line.shift) + (f" ({ratio_interval(line.interval)})" if line.interval is not None else "")


_COLUMNS: tuple[Column[BatchNormLine], ...] = (
    Column("#", lambda line: line.number),
    Column("BatchNorm", lambda line: line.before.name),
    Column("noise source", _noise),
    Column("shift predicted", _predicted, lambda line: ratio(_predicted(line))),
    Column("shift before", lambda line: line.before.measured_shift, lambda line: ratio(line.before.measured_shift)),
    Column("shift after", lambda line: line.shift_after, lambda line: ratio(line.shift_after)),
    Column("shift estimated, 95 % interval", lambda line: line.shift, _estimate),
    Column("mismatch before", lambda line: line.before.mismatch, lambda line: ratio(line.before.mismatch)),
    Column("mismatch after", lambda line: line.mismatch_after, lambda line: ratio(line.mismatch_after)),
    Column("status", lambda line: line.status),
    Column("reason", lambda line: line.reason),
    Column("fold", lambda line: line.fold),
)
