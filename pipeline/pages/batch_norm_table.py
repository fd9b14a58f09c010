"""Every BatchNorm as one line, of a repair or of an inspection, and the table of them."""

from __future__ import annotations

from dataclasses import dataclass

from vsfix.graph_passes.statistics.estimate import Interval
from vsfix.pipeline.inspection.batch_norm_row import BatchNormRow
from vsfix.pipeline.repair.repair_report import BatchNormOutcome
from vsfix.pipeline.report.number_text import gain, ratio, ratio_interval
from vsfix.pipeline.report.sections import Report
from vsfix.pipeline.report.table import Column, Table, make_table


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


def batch_norm_lines(report: Report) -> tuple[BatchNormLine, ...]:
    """The lines of what a report holds, in the order of the graph."""
    if report.repair is not None:
        return tuple(_repaired(number, outcome) for number, outcome in enumerate(report.repair.batch_norms, 1))
    rows = report.inspection.rows if report.inspection is not None else ()
    return tuple(BatchNormLine(number, row) for number, row in enumerate(rows, 1))


def batch_norm_table(lines: tuple[BatchNormLine, ...]) -> Table:
    """The table; columns that no line fills are left out."""
    looked_at_only = all(line.after is None for line in lines)
    return make_table(_NAMES + (_INSPECTED if looked_at_only else _REPAIRED), lines)


def batch_norm_legend(lines: tuple[BatchNormLine, ...]) -> str:
    """The meaning of the columns of the table."""
    shown = {heading.text for heading in batch_norm_table(lines).headings}
    return " ".join(text for heading, text in _LEGEND.items() if heading in shown)


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


def _estimate(line: BatchNormLine) -> str:
    """The shift that the method found, and its interval."""
    interval = "" if line.interval is None else f" ({ratio_interval(line.interval)})"
    return "" if line.shift is None else ratio(line.shift) + interval


def _deployed(line: BatchNormLine) -> BatchNormRow:
    """The BatchNorm as it is deployed."""
    return line.before if line.after is None else line.after


def _gain(line: BatchNormLine) -> str:
    """The range of its gain."""
    row = _deployed(line)
    low, high = row.gain_low, row.gain_high
    return "" if low is None or high is None else f"{gain(low)} – {gain(high)}"


def _beyond(line: BatchNormLine) -> int | None:
    """Channels that float16 can't hold; none where it holds all."""
    return _deployed(line).beyond_fp16 or None


_NAMES: tuple[Column[BatchNormLine], ...] = (
    Column("#", lambda line: line.number),
    Column("BatchNorm", lambda line: line.before.name),
    Column("noise source", _noise),
)
_INSPECTED: tuple[Column[BatchNormLine], ...] = (
    Column("shift predicted", lambda line: line.before.predicted_shift, ratio),
    Column("shift measured", lambda line: line.before.measured_shift, ratio),
    Column("variance ratio", lambda line: line.before.mismatch, ratio),
    Column("gain", lambda line: _deployed(line).gain_high, text=_gain),
    Column("channels past fp16", _beyond),
)
_REPAIRED: tuple[Column[BatchNormLine], ...] = (
    Column("shift before", lambda line: line.before.measured_shift, ratio),
    Column("shift after", lambda line: None if line.after is None else line.after.measured_shift, ratio),
    Column("shift estimated, 95 % interval", lambda line: line.shift, text=_estimate),
    Column("variance ratio before", lambda line: line.before.mismatch, ratio),
    Column("variance ratio after", lambda line: None if line.after is None else line.after.mismatch, ratio),
    Column("gain", lambda line: _deployed(line).gain_high, text=_gain),
    Column("channels past fp16", _beyond),
    Column("status", lambda line: line.status),
    Column("reason", lambda line: line.reason),
    Column("fold", lambda line: line.fold),
)
_VARIANCE_RATIO = (
    "Variance ratio: the larger of stored over real and real over stored variance, channel by channel, their "
    "geometric mean."
)
_LEGEND = {
    "#": "A click on a heading sorts.",
    "noise source": (
        "Noise source: the nearest noise layer, and whether it stands directly upstream, before a linear layer, or "
        "farther upstream."
    ),
    "shift predicted": "Shift predicted: from what the file stores, where the noise stands directly upstream.",
    "shift measured": "Shift: variance at inference over stored variance, geometric mean over the channels; 1 is none.",
    "shift before": "Shift: variance at inference over stored variance, geometric mean over the channels; 1 is none.",
    "shift estimated, 95 % interval": (
        "Estimated: the ratio of the variances without and with the noise, downstream of corrected BatchNorms; where "
        "its interval includes 1 and the channels scatter no more than chance, the statistics are unchanged."
    ),
    "variance ratio": _VARIANCE_RATIO,
    "variance ratio before": _VARIANCE_RATIO,
    "gain": (
        "Gain: the smallest and the largest |gamma| / sqrt(variance + epsilon) of its channels, by which a fold "
        "multiplies the weights of the layer; sorted by the largest."
    ),
    "channels past fp16": "Channels past fp16: those whose gain or shift is larger than 65504, or not finite.",
    "fold": "Fold: into which layer the BatchNorm was folded, or why it stays.",
}
