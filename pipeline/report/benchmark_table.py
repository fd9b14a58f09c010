"""The benchmark on the terminal: what a person needs first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vsfix.pipeline.benchmark.latency import Latency
from vsfix.pipeline.benchmark.result import Benchmark, Row
from vsfix.pipeline.comparison.decisions import Task
from vsfix.pipeline.comparison.proportion import Proportion

_NUMBERS = (
    *("top-1 % (95 %)", "pp", "reg/fix", "p", "kept %", "agree %", "SNR dB"),
    *("p50 ms", "p99 ms", "images/s", "ratio"),
)
_NOTHING = "-"


def benchmark_table(found: Benchmark) -> Table:
    """One line for each row; the latency is that of the smallest batch size, the throughput the best of all.

    A column in which no row has a number is left out.
    """
    table = Table(title=_title(found), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model", overflow="fold")
    for heading in ("runs on", "status"):
        table.add_column(heading, no_wrap=True)
    cells = [_numbers(row, found.reference_row) for row in found.rows]
    kept = [index for index in range(len(_NUMBERS)) if any(row[index] != _NOTHING for row in cells)]
    for index in kept:
        table.add_column(_NUMBERS[index], justify="right", no_wrap=True)
    for row, numbers in zip(found.rows, cells, strict=True):
        table.add_row(row.model, f"{row.backend} {row.precision}", row.status, *(numbers[index] for index in kept))
    return table


def benchmark_view(found: Benchmark) -> Iterator[str | Table]:
    """A benchmark: the table, and what a reader must know."""
    yield benchmark_table(found)
    yield legend(found)
    for row in found.rows:
        for reason in row.reasons:
            yield f"{row.status} {row.label}: {reason}"
        if row.layers is not None:
            yield f"{row.status} {row.label}: {row.layers}"
    for note in found.notes:
        yield f"WARN {note}"
    yield f"{found.status} {found.verdict}"


def _title(found: Benchmark) -> str:
    """The number of samples and their source."""
    return f"{found.samples} samples of {found.data}"


def legend(found: Benchmark) -> str:
    """The meaning of the columns."""
    return (
        f"pp (percentage points), reg/fix (regressions / fixes) and p (McNemar): against {found.reference}; kept "
        "(of top-1, in brackets the bar of 99.9 and 99 % that it reaches), agree (of decisions), SNR: against the "
        "first row of the same model; ratio: of p50, to the first model on the same backend and precision; p50 and "
        "p99 of the smallest batch, images/s of the best"
    )


def smallest_batch(row: Row) -> Latency | None:
    """The latency of the smallest batch size; of an engine that with a CUDA graph."""
    return min(row.latencies, key=lambda found: (found.batch_size, not found.cuda_graph), default=None)


def best_throughput(row: Row) -> float | None:
    """Samples per second at the batch size where they are most."""
    return max((found.throughput for found in row.latencies), default=None)


def _numbers(row: Row, reference: Row) -> Sequence[str]:
    """The cells after the name of a row."""
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
