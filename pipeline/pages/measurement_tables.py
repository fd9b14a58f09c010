"""The tables of what was measured: accuracies, benchmark rows, latencies, error budgets, steps."""

from __future__ import annotations

from collections.abc import Sequence

from vsfix.pipeline.comparison.accuracy import AccuracyRow
from vsfix.pipeline.comparison.decisions import RETENTION_BARS
from vsfix.pipeline.comparison.error_budget import BudgetStep
from vsfix.pipeline.comparison.proportion import paired_difference_interval
from vsfix.pipeline.report.latency_figure import p50_p99
from vsfix.pipeline.report.number_text import (
    count,
    decibels,
    milliseconds,
    percent,
    points,
    probability,
    ratio,
    ratio_interval,
    share_interval,
    small,
)
from vsfix.pipeline.report.sections import BenchmarkRow, LatencySeries, StepRow
from vsfix.pipeline.report.table import Column, Table, make_table


def accuracy_table(rows: Sequence[AccuracyRow]) -> Table:
    """Top-1 of each model with its interval."""
    return make_table(_ACCURACY, rows)


def benchmark_table(rows: Sequence[BenchmarkRow]) -> Table:
    """One row for each model, backend and precision; what no row has is left out."""
    return make_table(_BENCHMARK, rows)


def latency_table(series: Sequence[LatencySeries]) -> Table:
    """p50 and p99 of each series, and how it compares with its baseline."""
    return make_table(_LATENCY, series)


def budget_table(steps: Sequence[BudgetStep]) -> Table:
    """One row for each step."""
    return make_table(_BUDGET, steps)


def step_table(rows: Sequence[StepRow]) -> Table:
    """One row for each verified step."""
    return make_table(_STEPS, rows)


def _top1(row: BenchmarkRow) -> str:
    """Top-1 and its interval."""
    share = row.top1
    return "" if share is None else f"{percent(share.value, 2)} ({share_interval(share.low, share.high)})"


def _ratio(series: LatencySeries) -> str:
    """The ratio to the baseline, and its interval."""
    interval = "" if series.ratio_interval is None else f" ({ratio_interval(series.ratio_interval)})"
    return "" if series.ratio is None else ratio(series.ratio) + interval


def _fine_percent(share: float) -> str:
    """A share to a hundredth of a per cent."""
    return percent(share, 2)


def _difference_interval(row: BenchmarkRow) -> str:
    """The 95 % interval of the difference to the reference, in percentage points."""
    if row.top1 is None or row.good_to_bad is None or row.bad_to_good is None:
        return ""
    both = row.top1.count - row.bad_to_good
    low, high = paired_difference_interval(both, row.good_to_bad, row.bad_to_good, row.top1.total)
    return f"{points(100 * low, 1)} to {points(100 * high, 1)}"


def _bar(row: BenchmarkRow) -> str:
    """Which bar a retention reaches."""
    if row.retention is None:
        return ""
    reached = next((bar for bar in RETENTION_BARS if row.retention >= bar), None)
    return (
        f"< {100 * RETENTION_BARS[-1]:g} %" if reached is None else f"\N{GREATER-THAN OR EQUAL TO} {100 * reached:g} %"
    )


def _regressions_and_fixes(row: BenchmarkRow) -> str:
    """The regressions and fixes, as `12 / 9 (p = 0.66)`."""
    chance = "" if row.p_value is None else f" ({probability(row.p_value)})"
    return f"{row.good_to_bad} / {row.bad_to_good}{chance}"


_ACCURACY: tuple[Column[AccuracyRow], ...] = (
    Column("model", lambda row: row.model),
    Column("calibration images", lambda row: row.images, count, always=True),
    Column("top-1", lambda row: row.accuracy, percent),
    Column("95 % interval", lambda row: row.low, text=lambda row: share_interval(row.low, row.high)),
)
_BENCHMARK: tuple[Column[BenchmarkRow], ...] = (
    Column("model", lambda row: row.model, note=lambda row: row.note),
    Column("backend", lambda row: row.backend),
    Column("precision", lambda row: row.precision),
    Column("status", lambda row: row.status),
    Column("top-1, 95 % interval", lambda row: None if row.top1 is None else row.top1.value, text=_top1),
    Column("percentage points to reference", lambda row: row.difference, points, note=_difference_interval),
    Column("regressions / fixes", lambda row: row.good_to_bad, text=_regressions_and_fixes),
    Column("retention", lambda row: row.retention, _fine_percent, note=_bar),
    Column("agreement", lambda row: row.agreement, _fine_percent),
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
    Column("top-1", lambda step: step.accuracy, _fine_percent),
)
_STEPS: tuple[Column[StepRow], ...] = (
    Column("step", lambda row: row.step),
    Column("status", lambda row: row.status),
    Column("SNR", lambda row: row.snr_db, decibels),
    Column("largest error", lambda row: row.max_abs, small),
    Column("top-1 agreement", lambda row: row.agreement, percent),
)
