"""R on the page: how far the network is from what it was trained to compute, before and after, and what was tried."""

from __future__ import annotations

from dataclasses import dataclass

from vsfix.graph_passes.noise_average.severity import Severity
from vsfix.pipeline.inspection.diagnosis import severity_sentence
from vsfix.pipeline.inspection.noise_study import LayerRow
from vsfix.pipeline.repair.candidates import CandidateRow
from vsfix.pipeline.repair.repair_report import RepairReport
from vsfix.pipeline.report.number_text import percent, points, ratio
from vsfix.pipeline.report.sections import Report
from vsfix.pipeline.report.table import Column, Table, make_table


@dataclass(frozen=True)
class SeverityRow:
    """R of one file on one set of samples."""

    what: str
    severity: Severity


def severity_of(report: Report) -> Severity | None:
    """R of the file as it was given; None where it is unknown."""
    looked_at = report.repair or report.inspection
    return looked_at.severity if looked_at is not None else None


def sentence(report: Report) -> str:
    """R of the file as given and what it means; empty where it is unknown."""
    found = severity_of(report)
    if found is None:
        return ""
    doubtful = report.inspection is not None and report.inspection.stored
    return ("With the statistics as they are stored: " if doubtful else "") + severity_sentence(found)


def output_lines(report: Report) -> tuple[str, ...]:
    """How each output is read."""
    looked_at = report.repair or report.inspection
    return looked_at.outputs if looked_at is not None else ()


def severity_table(report: Report) -> Table:
    """R as given, and before and after on the samples that judge."""
    return make_table(_SEVERITY, severity_rows(report))


def severity_rows(report: Report) -> tuple[SeverityRow, ...]:
    """The rows of that table; the first is left out where it is the second."""
    found = severity_of(report)
    if found is None:
        return ()
    repair = report.repair
    if repair is None or repair.severity_before is None or repair.severity_after is None:
        return (SeverityRow("as given", found),)
    rows = (SeverityRow("before", repair.severity_before), SeverityRow("after", repair.severity_after))
    return rows if repair.severity_before == found else (SeverityRow("as given, all samples", found), *rows)


def candidate_table(report: Report) -> Table | None:
    """The candidates that were tried; None where none was."""
    repair = report.repair
    if repair is None or not repair.candidates:
        return None
    first = repair.candidates[0].name
    columns: tuple[Column[CandidateRow], ...] = (
        Column("candidate", lambda row: row.name, note=lambda row: "taken" if is_taken(row, repair) else ""),
        Column("R", lambda row: row.severity, _r),
        Column(
            "against as trained, 95 % interval",
            lambda row: None if row.name == first else row.difference,
            points,
            note=_interval_of_difference,
        ),
        Column("decisions that differ", lambda row: row.changed, percent),
        Column("score on labels", lambda row: row.score, lambda value: f"{value:.4g}"),
    )
    return make_table(columns, repair.candidates)


def is_taken(row: CandidateRow, repair: RepairReport) -> bool:
    """Whether a candidate is what was written; the file as given where nothing was."""
    if repair.method == "none":
        return row.name == repair.candidates[0].name
    return row.name == repair.method


def layer_table(report: Report) -> Table | None:
    """The distance of each layer before and after; None where it was not measured."""
    if report.repair is None or not report.repair.layers:
        return None
    return make_table(_LAYERS, report.repair.layers)


def _r(value: float) -> str:
    """R, or a difference of two."""
    return f"{value:.2f}"


def _interval(row: SeverityRow) -> str:
    """The interval of R."""
    return f"{_r(row.severity.low)} – {_r(row.severity.high)}"


def _interval_of_difference(row: CandidateRow) -> str:
    """The interval of a difference."""
    return f"{points(row.low)} to {points(row.high)}"


_SEVERITY: tuple[Column[SeverityRow], ...] = (
    Column("file", lambda row: row.what),
    Column("R, 95 % interval", lambda row: row.severity.ratio, _r, note=_interval),
    Column("decisions that differ", lambda row: row.severity.changed, percent),
    Column("samples", lambda row: row.severity.samples),
)
_LAYERS: tuple[Column[LayerRow], ...] = (
    Column("layer", lambda row: row.name),
    Column("distance before", lambda row: row.before, ratio),
    Column("distance after", lambda row: row.after, ratio),
)
