"""The tables of what was measured: accuracies, benchmark rows, latencies, error budgets, steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vsfix.pipeline.accuracy import AccuracyRow
from vsfix.pipeline.error_budget import BudgetStep

from .latency_figure import p50_p99
from .number_text import count, decibels, milliseconds, percent, points, share_interval, small
from .sections import BenchmarkRow, LatencySeries, StepRow
from .table import Column, Table, make_table


def accuracy_table(rows: Sequence[AccuracyRow]) -> Table:
    """Top-1 of each model with its interval."""
    return make_table(_ACCURACY, rows)


def benchmark_table(rows: Sequence[BenchmarkRow]) -> Table:
    """One row for each model, backend and precision; what no row has is left out."""
    return make_table(_BENCHMARK, rows)


def latency_table(series: Sequence[LatencySeries]) -> Table:
    """p50, p99 and mean of each series."""
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
    return "" if share is None else f"{percent(share.value, 2)} ({share_interval(share.low, share.high, 2)})"


def _flips(row: BenchmarkRow) -> str:
    """The flips, as `12 / 9 (p = 0.66)`."""
    chance = "" if row.p_value is None else f" (p = {small(row.p_value)})"
    return f"{count(row.good_to_bad)} / {count(row.bad_to_good)}{chance}"


_ACCURACY: tuple[Column[AccuracyRow], ...] = (
    Column("model", lambda row: row.model),
    Column("calibration images", lambda row: row.images, lambda row: count(row.images), always=True),
    Column("top-1", lambda row: row.accuracy, lambda row: percent(row.accuracy)),
    Column("95 % interval", lambda row: row.low, lambda row: share_interval(row.low, row.high)),
)
_BENCHMARK: tuple[Column[BenchmarkRow], ...] = (
    Column("model", lambda row: row.model, note=lambda row: row.note),
    Column("backend", lambda row: row.backend),
    Column("precision", lambda row: row.precision),
    Column("status", lambda row: row.status),
    Column("top-1, 95 % interval", lambda row: None if row.top1 is None else row.top1.value, _top1),
    Column("points to reference", lambda row: row.difference, lambda row: points(row.difference)),
    Column("good to bad / bad to good", lambda row: row.good_to_bad, _flips),
    Column("retention", lambda row: row.retention, lambda row: percent(row.retention, 2)),
    Column("agreement", lambda row: row.agreement, lambda row: percent(row.agreement, 2)),
    Column("SNR", lambda row: row.snr_db, lambda row: decibels(row.snr_db)),
    Column("batch", lambda row: row.batch_size),
    Column("p50, ms", lambda row: row.p50_ms, lambda row: milliseconds(row.p50_ms)),
    Column("p99, ms", lambda row: row.p99_ms, lambda row: milliseconds(row.p99_ms)),
    Column("images/s", lambda row: row.images_per_second, lambda row: count(row.images_per_second)),
)
_LATENCY: tuple[Column[LatencySeries], ...] = (
    Column("model", lambda series: series.name),
    Column("batch", lambda series: series.batch_size),
    Column("runs", lambda series: len(series.milliseconds), lambda series: count(len(series.milliseconds))),
    Column("p50, ms", lambda series: p50_p99(series)[0], lambda series: milliseconds(p50_p99(series)[0])),
    Column("p99, ms", lambda series: p50_p99(series)[1], lambda series: milliseconds(p50_p99(series)[1])),
    Column(
        "mean, ms",
        lambda series: statistics.fmean(series.milliseconds),
        lambda series: milliseconds(statistics.fmean(series.milliseconds)),
    ),
)
_BUDGET: tuple[Column[BudgetStep], ...] = (
    Column("step", lambda step: step.step),
    Column("behind it", lambda step: step.target),
    Column("SNR", lambda step: step.snr_db, lambda step: decibels(step.snr_db)),
    Column("largest relative error", lambda step: step.max_rel, lambda step: small(step.max_rel)),
    Column("agreement", lambda step: step.agreement, lambda step: percent(step.agreement, 2)),
    Column("top-1", lambda step: step.accuracy, lambda step: percent(step.accuracy, 2)),
)
_STEPS: tuple[Column[StepRow], ...] = (
    Column("step", lambda row: row.step),
    Column("status", lambda row: row.status),
    Column("SNR", lambda row: row.snr_db, lambda row: decibels(row.snr_db)),
    Column("largest error", lambda row: row.max_abs, lambda row: small(row.max_abs)),
    Column("top-1 agreement", lambda row: row.agreement, lambda row: percent(row.agreement)),
)
