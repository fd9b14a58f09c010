"""The benchmark on the terminal: what a person needs first."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vsfix.pipeline.decisions import Task
from vsfix.pipeline.proportion import Proportion

from .latency import Latency
from .result import Benchmark, Row

_NUMBERS = (
    *("top-1 % (95 %)", "points", "flips", "p", "kept %", "agree %", "SNR dB"),
    *("p50 ms", "p99 ms", "images/s", "ratio"),
)


def benchmark_table(found: Benchmark) -> Table:
    """One line for each row; the latency is that of the smallest batch size, the throughput the best of all."""
    table = Table(title=f"{found.samples} samples of {found.data}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model", overflow="fold")
    for heading in ("runs on", ""):
        table.add_column(heading, no_wrap=True)
    for heading in _NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.rows:
        table.add_row(row.model, f"{row.backend} {row.precision}", row.status, *_numbers(row, found.rows[0]))
    return table


def legend(found: Benchmark) -> str:
    """What the columns mean."""
    return (
        f"points, flips (to wrong / to right) and p (McNemar): against {found.reference}; kept (of top-1, in brackets "
        "the bar of 99.9 and 99 % that it reaches), agree (of decisions), SNR: against the first row of the same "
        "model; ratio: of p50, to the first model on the same backend and precision; p50 and p99 of the smallest "
        "batch, images/s of the best"
    )


def smallest_batch(row: Row) -> Latency | None:
    """The latency of the smallest batch size; of an engine that with a CUDA graph."""
    return min(row.latencies, key=lambda found: (found.batch_size, not found.cuda_graph), default=None)


def best_throughput(row: Row) -> float | None:
    """Samples per second at the batch size where they are most."""
    return max((found.throughput for found in row.latencies), default=None)


def _numbers(row: Row, reference: Row) -> Sequence[str]:
    """The cells behind the name of a row."""
    latency, throughput = smallest_batch(row), best_throughput(row)
    times: Sequence[str] = ("-", "-", "-", "-")
    if latency is not None and throughput is not None:
        p50, p99 = (f"{value:.2f}" for value in (latency.p50_ms, latency.p99_ms))
        times = (p50, p99, f"{throughput:.0f}", f"{latency.ratio:.2f}")
    return (*_task(row, reference), *_fidelity(row), *times)


def _task(row: Row, reference: Row) -> Sequence[str]:
    """Top-1, and the difference to the reference."""
    if row.top1 is None or reference.top1 is None:
        return ("-", "-", "-", "-")
    if row.against_reference is None or row.against_reference.decisions.task is None:
        return (_share(row.top1), "-", "-", "-")
    task = row.against_reference.decisions.task
    points = 100 * (row.top1.value - reference.top1.value)
    p_value = "<1e-9" if task.p_value < 1e-9 else f"{task.p_value:.1g}"
    return (_share(row.top1), f"{points:+.2f}", f"{task.good_to_bad}/{task.bad_to_good}", p_value)


def _fidelity(row: Row) -> Sequence[str]:
    """Against the first row of the same model."""
    if row.against_own is None or row.against_own.decisions.task is None:
        return ("-", "-", "-")
    decisions = row.against_own.decisions
    snr = "exact" if row.against_own.snr_db == float("inf") else f"{row.against_own.snr_db:.1f}"
    return (_kept(row.against_own.decisions.task), f"{100 * decisions.agreement:.2f}", snr)


def _kept(task: Task) -> str:
    """The retention in percent, and the bar that it reaches."""
    if task.retention is None or task.retention_bar is None:
        return "-"
    bar = f"{100 * task.retention_bar:g}" if task.retention_bar else "-"
    return f"{100 * task.retention:.2f} ({bar})"


def _share(found: Proportion) -> str:
    """A share of right answers with its interval, in percent."""
    return f"{100 * found.value:.2f} ({100 * found.low:.1f}-{100 * found.high:.1f})"
