"""The page: one HTML file that needs nothing else, no network, no script of others, no font."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from vsfix.graph_passes.io.atomic_file import atomic_path
from vsfix.pipeline.report import number_text
from vsfix.pipeline.report.sections import ErrorBudget, Report


def write_report(report: Report, path: Path, *, force: bool) -> None:
    """Writes the page.

    Raises:
        OutputExistsError, InputError: see `atomic_path`.
    """
    page = render_report(report)
    with atomic_path(path, force=force) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # a path need not be UTF-8


def render_report(report: Report) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = {name: getattr(number_text, name) for name in ("bound", "count", "decibels")}
    environment.globals.update(words)
    return environment.get_template("page.html.j2").render(_views(report))


def _views(report: Report) -> Mapping[str, Any]:
    """The values that the templates draw: the report, and its sections as tables and figures."""
    # Here, because matplotlib takes as long to load as a small repair.
    from vsfix.pipeline.report import accuracy_figure, latency_figure
    from vsfix.pipeline.report.distance_figure import distance_figure
    from vsfix.pipeline.report.figure import SERIES, SHAPES
    from vsfix.pipeline.report.path_boxes import path_boxes
    from vsfix.pipeline.report.variance_ratio_figure import variance_ratio_figure

    from . import measurement_tables, severity_view
    from .answers import find_answers
    from .batch_norm_table import batch_norm_legend, batch_norm_lines, batch_norm_table

    looked_at = report.repair or report.inspection
    found = severity_view.severity_of(report)
    lines = batch_norm_lines(report)
    before = [line.before.mismatch for line in lines]
    after = [line.after.mismatch for line in lines if line.after is not None]
    return {
        "report": report,
        "answers": find_answers(report),
        "severity": severity_view.severity_table(report) if found is not None else None,
        "severity_sentence": severity_view.sentence(report),
        "healthy": None if found is None else found.bound,
        "decides": found is not None and found.changed is not None,
        "candidates": severity_view.candidate_table(report),
        "has_scores": report.repair is not None and any(row.score is not None for row in report.repair.candidates),
        "distance": distance_figure(report.repair.layers if report.repair is not None else ()),
        "layers": severity_view.layer_table(report),
        "outputs": severity_view.output_lines(report),
        "variance_ratios": variance_ratio_figure(before, after) if any(before) else "",
        "measured_on": report.samples,
        "warnings": report.warnings + (looked_at.warnings if looked_at else ()),
        "route": path_boxes(looked_at.route) if looked_at and looked_at.route else (),
        "accuracy": accuracy_figure.accuracy_figure(report.accuracies),
        "accuracy_lines": accuracy_figure.accuracy_lines(report.accuracies),
        "accuracy_metric": report.accuracies[0].score if report.accuracies else None,
        "accuracy_table": measurement_tables.accuracy_table(report.accuracies),
        "colours": len(SERIES),
        "shapes": SHAPES,
        "benchmark_table": measurement_tables.benchmark_table(report.benchmark),
        "benchmark_legend": _benchmark_legend(report),
        "latency": latency_figure.latency_figure(report.latencies) if report.latencies else "",
        "latency_table": measurement_tables.latency_table(report.latencies),
        "budgets": [_budget_view(budget, number) for number, budget in enumerate(report.budgets, 1)],
        "steps": measurement_tables.step_table(report.steps),
        "batch_norms": batch_norm_table(lines) if lines else None,
        "batch_norm_legend": batch_norm_legend(lines),
    }


def _budget_view(budget: ErrorBudget, number: int) -> Mapping[str, Any]:
    """The figures and the table of one error budget."""
    from vsfix.pipeline.report.budget_figure import accuracy_waterfall, error_figure

    from .measurement_tables import budget_table

    score = budget.score
    return {
        "budget": budget,
        "metric": "" if score is None else number_text.headed(score.metric),
        "level": "" if score is None else score.number(score.value),
        "interval": "" if score is None else number_text.score_interval(score, 2),
        "errors": error_figure(budget, f"errors-{number}"),
        "waterfall": accuracy_waterfall(budget, f"waterfall-{number}"),
        "table": budget_table(budget.steps, budget.score),
    }


def _benchmark_legend(report: Report) -> str:
    """The meaning of the columns of the benchmark table."""
    reference = f" ({report.benchmark_reference})" if report.benchmark_reference else ""
    own, times = (
        "the share of equal decisions, signal over error. ",
        "p50, p99: the median latency of one run, and what 99 of 100 runs stay below.",
    )
    score = next((row.score for row in report.benchmark if row.score is not None), None)
    if score is None:
        return (
            f"There are no labels: how right a row is, is unknown. Agreement, cosine and SNR hold each row against the "
            f"reference{reference}: {own}{times}"
        )
    kept = (
        "Retention, agreement and SNR hold each row against the first row of the same model: its "
        f"{score.metric} over that{', of errors the inverse' if score.is_loss else ''}, read against the bars of 99.9 "
        f"and 99 %, {own}{times}"
    )
    if score.unit:
        name = number_text.headed(score.metric)
        kind = "Wilson" if score.count is not None else "Student"
        return (
            f"{name} with its 95 % {kind} interval. Percentage points to reference: {score.metric} less that of the "
            f"reference{reference}, below it the 95 % interval of that difference on the same samples. Regressions / "
            "fixes: samples that only the reference, or only this row, gets right, with the p-value of McNemar's exact "
            f"test; a small p says that the difference is more than chance. {kept}"
        )
    return (
        f"{score.metric} with the 95 % interval of its mean over the samples. Gain over the reference{reference}: "
        "positive where this row is better, below it the 95 % interval of that difference on the same samples. Paired "
        f"test: the p-value of the differences; a small p says that they are more than chance. {kept}"
    )
