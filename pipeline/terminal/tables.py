"""Results as tables and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from vsfix.pipeline.casting.casting import PrecisionReport
from vsfix.pipeline.comparison.accuracy import AccuracyRow
from vsfix.pipeline.comparison.agreement import Agreement
from vsfix.pipeline.inspection.diagnosis import severity_sentence
from vsfix.pipeline.inspection.inspection import Inspection
from vsfix.pipeline.repair.label_judge import LabelScores
from vsfix.pipeline.repair.repair_report import RepairReport
from vsfix.pipeline.report.sections import StepRow


def inspection_table(inspection: Inspection) -> Table:
    """One row for each BatchNorm: the noise that reaches it and its shift."""
    table = Table(title="BatchNorms and the noise that reaches them", title_justify="left")
    table.add_column("BatchNorm", overflow="fold")
    for heading in ("noise", "distance"):
        table.add_column(heading)
    for heading in ("sources", "predicted", "measured", "variance ratio"):
        table.add_column(heading, justify="right")
    for row in inspection.rows:
        table.add_row(
            row.name,
            row.noise or "none",
            row.distance or "-",
            str(row.sources),
            _number(row.predicted_shift),
            _number(row.measured_shift),
            _number(row.mismatch),
        )
    return table


def inspection_view(inspection: Inspection, status: str, verdict: str) -> Iterator[str | Table]:
    """An inspection: what was prepared, the table, the noise, R, the warnings and the verdict."""
    for change in inspection.prepared:
        yield f"prepared: {change}"
    if inspection.rows:
        yield inspection_table(inspection)
    yield f"noise layers: {', '.join(inspection.noise_sources) or 'none'}"
    if inspection.inferred:
        yield f"inferred from the statistics: {inspection.inferred}"
    for line in inspection.outputs:
        yield f"output {line}"
    if inspection.severity is not None and inspection.stored:
        yield f"with the statistics as they are stored: {severity_sentence(inspection.severity)}"
    for warning in inspection.warnings:
        yield f"WARN {warning}"
    yield f"{status} {verdict}"


def repair_view(report: RepairReport) -> Iterator[str | Table]:
    """A repair without its verdict: what was prepared, the tables, R and the warnings."""
    for change in report.prepared:
        yield f"prepared: {change}"
    if report.batch_norms:
        yield repair_table(report)
    if report.layers:
        yield layer_table(report)
    if report.candidates:
        yield candidate_table(report)
    yield from severity_lines(report)
    if report.precision is not None:
        yield precision_table(report.precision)
    if report.agreements:
        yield agreement_table(report.agreements)
    for warning in report.warnings:
        yield f"WARN {warning}"


def demo_view(
    report: RepairReport, accuracies: tuple[AccuracyRow, ...], steps: tuple[StepRow, ...]
) -> Iterator[str | Table]:
    """The demonstration without its verdict: the repair, what it is worth, and each step against torch."""
    yield repair_table(report)
    yield candidate_table(report)
    yield from severity_lines(report)
    yield accuracy_table(accuracies)
    yield step_table(steps)


def repair_table(report: RepairReport) -> Table:
    """One row for each BatchNorm: its shift before and after, and what was done."""
    table = Table(title=f"Repair by {report.method}: {report.method_reason}", title_justify="left")
    table.add_column("BatchNorm", overflow="fold")
    table.add_column("noise")
    for heading in ("shift before", "after", "estimated"):
        table.add_column(heading, justify="right")
    table.add_column("statistics", overflow="fold")
    table.add_column("fold", overflow="fold")
    for row in report.batch_norms:
        table.add_row(
            row.before.name,
            row.before.noise or "none",
            _number(row.before.measured_shift),
            _number(row.after.measured_shift),
            _interval(row.interval) if row.interval else _number(row.shift),
            row.action,
            row.fold_reason,
        )
    return table


def layer_table(report: RepairReport) -> Table:
    """How far what each layer gives is from the noise-averaged network, before and after."""
    table = Table(title="Distance of each layer from the noise-averaged network", title_justify="left")
    table.add_column("layer", overflow="fold")
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    for row in report.layers:
        table.add_row(row.name, _number(row.before), _number(row.after))
    return table


def candidate_table(report: RepairReport) -> Table:
    """The candidates, and how far each is from the noise-averaged network."""
    table = Table(title=f"Candidates, on {report.judges} samples that judge", title_justify="left")
    table.add_column("candidate", overflow="fold")
    for heading in ("R", "against as trained (95 %)", "decisions that differ", "score on labels"):
        table.add_column(heading, justify="right")
    for number, row in enumerate(report.candidates):
        table.add_row(
            f"{row.name} (taken)" if row.name == report.method else row.name,
            f"{row.severity:.2f}",
            "-" if not number else f"{row.low:+.2f} to {row.high:+.2f}",
            "-" if row.changed is None else f"{100 * row.changed:.1f} %",
            "-" if row.score is None else f"{row.score:.4g}",
        )
    return table


def precision_table(report: PrecisionReport) -> Table:
    """The result of the cast to another precision, one line for each thing."""
    table = Table(title=f"Cast to {report.precision}", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("found", overflow="fold")
    table.add_row("layers", ", ".join(f"{count} in {name}" for name, count in report.layers.items()))
    if report.calibration:
        table.add_row("calibration", report.calibration)
    if report.raised_for:
        table.add_row("opset", f"raised to {report.opset} for {report.raised_for}")
    if not report.calibration:
        lost = f"{report.rounded_values} in {report.rounded_tensors} tensors; {report.to_zero} became zero, "
        table.add_row("rounded values", f"{lost}{report.to_subnormal} subnormal, {report.saturated} the largest number")
    if report.put_back is not None:
        for line in report.put_back.lines:
            table.add_row(*line)
    if report.scores is not None:
        table.add_row("on labels, float32 before", f"{report.scores.arrow}: {report.scores.details}")
    if report.dead_channels:
        table.add_row("dead channels", ", ".join(report.dead_channels))
    for kept in report.kept:
        table.add_row("kept", kept)
    snr = "same bits" if report.snr_db is None else f"{report.snr_db:.1f} dB"
    table.add_row("against before", f"{snr} on {report.samples} samples, {report.judge}" if report.judge else "not run")
    return table


def accuracy_table(rows: tuple[AccuracyRow, ...]) -> Table:
    """The metric of each model with its interval."""
    table = Table(title="Accuracy on the test images", title_justify="left")
    table.add_column("model", overflow="fold")
    for heading in ("images", rows[0].score.metric, "95 % interval"):
        table.add_column(heading, justify="right")
    for row in rows:
        score, images = row.score, "-" if row.images is None else str(row.images)
        low, high = (score.number(end, 1) for end in (score.low, score.high))
        interval = f"{low.removesuffix(' %')} - {high}"
        table.add_row(row.model, images, score.number(score.value, 1), interval)
    return table


def score_table(scores: LabelScores) -> Table:
    """The scores of the file as given and of the written one on labelled data."""
    of = "" if scores.output is None else f" of output '{scores.output}'"
    table = Table(title=f"On labelled data: {scores.metric}{of}", title_justify="left")
    for heading in ("as trained", "written", "gain"):
        table.add_column(heading)
    table.add_row(scores.value(scores.before), scores.value(scores.after), scores.details)
    return table


def agreement_table(rows: tuple[Agreement, ...]) -> Table:
    """How far the outputs agree on data without labels."""
    title = f"On {rows[0].samples} samples without labels: how alike outputs are, not how right"
    table = Table(title=title, title_justify="left")
    table.add_column("output", overflow="fold")
    table.add_column("measure")
    for heading in ("written with as given", "as given with the noise average", "written with the noise average"):
        table.add_column(heading, justify="right")
    for row in rows:
        values = (row.repaired_given, row.given_average, row.repaired_average)
        table.add_row(row.output, row.measure, *map(row.text, values))
    return table


def step_table(rows: tuple[StepRow, ...]) -> Table:
    """Each step against torch."""
    table = Table(title="Each step against PyTorch", title_justify="left")
    table.add_column("step", overflow="fold")
    table.add_column("status")
    for heading in ("SNR", "largest error", "top-1 agreement"):
        table.add_column(heading, justify="right")
    for row in rows:
        snr = "exact" if row.snr_db == float("inf") else f"{row.snr_db:.1f} dB"
        table.add_row(row.step, row.status, snr, f"{row.max_abs:.2g}", f"{100 * row.agreement:.1f} %")
    return table


def _interval(interval: tuple[float, float]) -> str:
    """Both ends."""
    return f"{interval[0]:.2f}-{interval[1]:.2f}"


def _number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def severity_lines(report: RepairReport) -> list[str]:
    """R and how the outputs are read, one line each."""
    lines = [f"output {line}" for line in report.outputs]
    if report.severity is not None:
        lines.append(f"as given: {severity_sentence(report.severity)}")
    if report.severity_before is not None and report.severity_after is not None:
        before, after = report.severity_before, report.severity_after
        changed = (
            ""
            if before.changed is None or after.changed is None
            else f"; decisions that differ: {100 * before.changed:.1f} -> {100 * after.changed:.1f} %"
        )
        lines.append(
            f"on {report.judges} samples that judge: R {before.ratio:.2f} ({before.low:.2f} to {before.high:.2f}) -> "
            f"{after.ratio:.2f} ({after.low:.2f} to {after.high:.2f}){changed}"
        )
    return lines
