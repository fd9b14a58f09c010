"""The benchmark on the terminal: what a person needs first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vsfix.pipeline.benchmark.latency import Latency
from vsfix.pipeline.benchmark.result import Benchmark, Comparison, Row
from vsfix.pipeline.comparison.score_difference import Score

_AGAINST_REFERENCE = ("ref agree %", "ref cosine", "ref SNR dB")  # without labels
_FIDELITY = ("kept %", "agree %", "cosine", "SNR dB")
_TIMES = ("p50 ms", "p99 ms", "images/s", "ratio")
_NOTHING = "-"
_SHORT = 6  # letters of a heading


def benchmark_table(found: Benchmark) -> Table:
    """One line for each row; the latency is that of the smallest batch size, the throughput the best of all.

    A column in which no row has a number is left out.
    """
    table = Table(title=_title(found), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model", overflow="fold")
    for heading in ("runs on", "status"):
        table.add_column(heading, no_wrap=True)
    cells, headings = [_numbers(row, found) for row in found.rows], [*_judged(found), *_FIDELITY, *_TIMES]
    kept = [index for index in range(len(headings)) if any(row[index] != _NOTHING for row in cells)]
    for index in kept:
        table.add_column(headings[index], justify="right", no_wrap=True)
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
    times = (
        "ratio: of p50, to the first model on the same backend and precision; p50 and p99 of the smallest batch, "
        "images/s of the best"
    )
    own = "SNR: against the first row of the same model"
    if found.metric is None:
        return f"ref: against {found.reference}; agree (of decisions), cosine, {own}; {times}"
    output = f" of output '{found.metric.output}'" if found.metric.output else ""
    is_share = bool(found.metric.unit)
    gain = "pp (percentage points)" if is_share else "gain (positive where it is better)"
    found_in = [row.against_reference.difference for row in found.rows if row.against_reference is not None]
    decided = is_share or any(one is not None and one.fixes is not None for one in found_in)
    test = "reg/fix (regressions / fixes) and p (McNemar)" if decided else "p (paired test)"
    judged = "" if found.metric.key == "top1" else f"{found.metric.name}{output}; "
    share = found.metric.name if is_share else "the metric"
    kept = f"kept (of {share}, in brackets the bar of 99.9 and 99 % that it reaches)"
    return f"{judged}{gain}, {test}: against {found.reference}; {kept}, agree (of decisions), {own}; {times}"


def _judged(found: Benchmark) -> tuple[str, ...]:
    """The headings of what is judged."""
    metric = found.metric
    if metric is None:
        return _AGAINST_REFERENCE
    name = metric.name if len(metric.name) <= _SHORT else metric.key.rpartition(":")[2]
    return (f"{name} {metric.unit}".rstrip() + " (95 %)", "pp" if metric.unit else "gain", "reg/fix", "p")


def smallest_batch(row: Row) -> Latency | None:
    """The latency of the smallest batch size; of an engine that with a CUDA graph."""
    return min(row.latencies, key=lambda found: (found.batch_size, not found.cuda_graph), default=None)


def best_throughput(row: Row) -> float | None:
    """Samples per second at the batch size where they are most."""
    return max((found.throughput for found in row.latencies), default=None)


def _numbers(row: Row, found: Benchmark) -> Sequence[str]:
    """The cells after the name of a row."""
    latency, throughput = smallest_batch(row), best_throughput(row)
    times: Sequence[str] = (_NOTHING,) * len(_TIMES)
    if latency is not None and throughput is not None:
        p50, p99 = (f"{value:.2f}" for value in (latency.p50_ms, latency.p99_ms))
        times = (p50, p99, f"{throughput:.0f}", f"{latency.ratio:.2f}")
    judged = _agreement(row.against_reference) if found.metric is None else _task(row)
    own = row.against_own
    kept = _NOTHING if own is None else _kept(own)
    return (*judged, kept, *_agreement(own), *times)


def _task(row: Row) -> Sequence[str]:
    """The metric, and the difference to the reference."""
    if row.score is None:
        return (_NOTHING,) * 4
    found = None if row.against_reference is None else row.against_reference.difference
    if found is None:
        return (_value(row.score), *(_NOTHING,) * 3)
    flips = _NOTHING if found.fixes is None else f"{found.regressions}/{found.fixes}"
    p_value = "<1e-9" if found.p_value < 1e-9 else f"{found.p_value:.1g}"
    return (_value(row.score), f"{found.gain:+.2f}" if found.unit else f"{found.gain:+.3g}", flips, p_value)


def _agreement(found: Comparison | None) -> Sequence[str]:
    """Against another row: equal decisions, or where there are none the cosine; SNR."""
    if found is None:
        return (_NOTHING,) * 3
    snr = "exact" if found.snr_db == float("inf") else f"{found.snr_db:.1f}"
    if found.decisions is None:
        return (_NOTHING, _NOTHING if found.cosine is None else f"{found.cosine:.6f}", snr)
    return (f"{100 * found.decisions.agreement:.2f}", _NOTHING, snr)


def _kept(found: Comparison) -> str:
    """The retention in percent, and the bar that it reaches."""
    if found.retention is None or found.retention_bar is None:
        return _NOTHING
    bar = f"{100 * found.retention_bar:g}" if found.retention_bar else "-"
    return f"{100 * found.retention:.2f} ({bar})"


def _value(found: Score) -> str:
    """The metric with its interval; shares in percent."""
    if found.unit:
        return f"{found.value:.2f} ({found.low:.1f}-{found.high:.1f})"
    return found.number(found.value) + (f" ({found.low:.3g} to {found.high:.3g})" if isfinite(found.low) else "")
