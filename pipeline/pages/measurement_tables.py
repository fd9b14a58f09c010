"""The tables of what was measured: accuracies, benchmark rows, latencies, error budgets, steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vsfix.pipeline.comparison.accuracy import AccuracyRow
from vsfix.pipeline.comparison.decisions import RETENTION_BARS, bar_of
from vsfix.pipeline.comparison.error_budget import BudgetStep
from vsfix.pipeline.comparison.score_difference import Score
from vsfix.pipeline.report.latency_figure import p50_p99
from vsfix.pipeline.report.number_text import (
    cosine,
    count,
    decibels,
    milliseconds,
    percent,
    points,
    probability,
    ratio,
    ratio_interval,
    score_interval,
    score_text,
    signed,
    small,
)
from vsfix.pipeline.report.sections import BenchmarkRow, LatencySeries, StepRow
from vsfix.pipeline.report.table import Column, Table, make_table


def accuracy_table(rows: Sequence[AccuracyRow]) -> Table:
    """The metric of each model with its interval."""
    metric = rows[0].score.metric if rows else ""
    columns: tuple[Column[AccuracyRow], ...] = (
        Column("model", lambda row: row.model),
        Column("calibration images", lambda row: row.images, count, always=True),
        Column(metric, lambda row: row.score.value, text=lambda row: row.score.number(row.score.value, 1)),
        Column("95 % interval", lambda row: row.score.low, text=lambda row: score_interval(row.score)),
    )
    return make_table(columns, rows)


def benchmark_table(rows: Sequence[BenchmarkRow]) -> Table:
    """One row for each model, backend and precision; what no row has is left out."""
    scores = [row.score for row in rows if row.score is not None]
    return make_table(_benchmark_columns(scores[0] if scores else None), rows)


def latency_table(series: Sequence[LatencySeries]) -> Table:
    """p50 and p99 of each series, and how it compares with its baseline."""
    return make_table(_LATENCY, series)


def budget_table(steps: Sequence[BudgetStep], score: Score | None = None) -> Table:
    """One row for each step.

    Args:
        steps: of a budget.
        score: of the reference; None without labels.
    """
    return make_table((*_BUDGET, _level(score)), steps)


def _level(score: Score | None) -> Column[BudgetStep]:
    """The metric after a step."""
    if score is None or score.unit:
        return Column("top-1" if score is None else score.metric, lambda step: step.accuracy, _fine_percent)
    return Column(score.metric, lambda step: step.accuracy, score.number)


def step_table(rows: Sequence[StepRow]) -> Table:
    """One row for each verified step."""
    return make_table(_STEPS, rows)


def _ratio(series: LatencySeries) -> str:
    """The ratio to the baseline, and its interval."""
    interval = "" if series.ratio_interval is None else f" ({ratio_interval(series.ratio_interval)})"
    return "" if series.ratio is None else ratio(series.ratio) + interval


def _fine_percent(share: float) -> str:
    """A share to a hundredth of a per cent."""
    return percent(share, 2)


def _gain(row: BenchmarkRow) -> str:
    """The gain over the reference."""
    return "" if row.gain is None else signed(row.gain.gain, is_share=bool(row.gain.unit))


def _gain_interval(row: BenchmarkRow) -> str:
    """The 95 % interval of the gain on the same samples."""
    if row.gain is None or not math.isfinite(row.gain.interval[0]):
        return ""
    is_share = bool(row.gain.unit)
    low, high = (points(end, 1) if is_share else signed(end, is_share=False) for end in row.gain.interval)
    return f"{low} to {high}"


def _bar(row: BenchmarkRow) -> str:
    """Which bar a retention reaches."""
    if row.retention is None:
        return ""
    reached = bar_of(row.retention)
    return f"\N{GREATER-THAN OR EQUAL TO} {100 * reached:g} %" if reached else f"< {100 * RETENTION_BARS[-1]:g} %"


def _regressions_and_fixes(row: BenchmarkRow) -> str:
    """The regressions and fixes, as `12 / 9 (p = 0.66)`."""
    found = row.gain
    return "" if found is None else f"{found.regressions} / {found.fixes} ({probability(found.p_value)})"


def _chance(row: BenchmarkRow) -> float | None:
    """The p-value of the paired test, where no regressions and fixes stand beside it."""
    return row.gain.p_value if row.gain is not None and row.gain.fixes is None else None


def _benchmark_columns(score: Score | None) -> tuple[Column[BenchmarkRow], ...]:
    """The columns of a benchmark by this metric; None without labels."""
    metric, is_share = ("", False) if score is None else (score.metric, bool(score.unit))
    return (
        Column("model", lambda row: row.model, note=lambda row: row.note),
        Column("backend", lambda row: row.backend),
        Column("precision", lambda row: row.precision),
        Column("status", lambda row: row.status),
        Column(
            f"{metric}, 95 % interval",
            lambda row: None if row.score is None else row.score.value,
            text=lambda row: "" if row.score is None else score_text(row.score),
        ),
        Column(
            "percentage points to reference" if is_share else "gain over the reference",
            lambda row: None if row.gain is None else row.gain.gain,
            text=_gain,
            note=_gain_interval,
        ),
        Column(
            "regressions / fixes",
            lambda row: None if row.gain is None else row.gain.regressions,
            text=_regressions_and_fixes,
        ),
        Column("paired test", _chance, probability),
        Column("retention", lambda row: row.retention, _fine_percent, note=_bar),
        Column("agreement", lambda row: row.agreement, _fine_percent),
        Column("cosine", lambda row: row.cosine, cosine),
        Column("SNR", lambda row: row.snr_db, decibels),
        Column("batch", lambda row: row.batch_size),
        Column("p50, ms", lambda row: row.p50_ms, milliseconds),
        Column("p99, ms", lambda row: row.p99_ms, milliseconds),
        Column("best images/s", lambda row: row.images_per_second, count),
    )


_LATENCY: tuple[Column[LatencySeries], ...] = (
    Column("model", lambda series: series.name),
    Column("batch", lambda series: series.batch_size),
    Column("runs", lambda series: series.runs or len(series.milliseconds), count),
    Column("p50, ms", lambda series: p50_p99(series)[0], milliseconds),
    Column("p99, ms", lambda series: p50_p99(series)[1], milliseconds),
    Column("p50 to baseline, 95 % interval", lambda series: series.ratio, text=_ratio),
)
_BUDGET: tuple[Column[BudgetStep], ...] = (
    Column("step", lambda step: step.step),
    Column("target", lambda step: step.target),
    Column("SNR", lambda step: step.snr_db, decibels),
    Column("largest relative error", lambda step: step.max_rel, small),
    Column("agreement", lambda step: step.agreement, _fine_percent),
)
_STEPS: tuple[Column[StepRow], ...] = (
    Column("step", lambda row: row.step),
    Column("status", lambda row: row.status),
    Column("SNR", lambda row: row.snr_db, decibels),
    Column("largest error", lambda row: row.max_abs, small),
    Column("top-1 agreement", lambda row: row.agreement, percent),
)
