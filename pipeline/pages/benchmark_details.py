"""The tables on the rows of a benchmark in detail, for those who look closer: tensors, times in parts, files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from vsfix.pipeline.benchmark.latency import Latency, Phases
from vsfix.pipeline.benchmark.result import Row
from vsfix.pipeline.casting.casting import PrecisionReport
from vsfix.pipeline.comparison.tensor_comparison import TensorComparison
from vsfix.pipeline.comparison.tolerance import MAX_CV
from vsfix.pipeline.report.number_text import (
    cosine,
    count,
    decibels,
    mebibytes,
    milliseconds,
    percent,
    score_text,
    seconds,
    small,
)
from vsfix.pipeline.report.table import Column, Table, make_table

TensorLine = tuple[Row, str]  # a row that ran, and one of its outputs; "" where it is the reference
TimeLine = tuple[str, Latency]  # what ran, and how long it took


def tensor_lines(row: Row) -> list[TensorLine]:
    """The outputs of a row that ran."""
    if not row.ran:
        return []
    found = row.against_own or row.against_reference
    return [(row, "")] if found is None else [(row, name) for name in found.outputs]


def tensor_table(rows: Sequence[Row]) -> Table:
    """A row that ran against the first one of its model, the first one of a model against the reference."""
    return make_table(_TENSORS, [line for row in rows for line in tensor_lines(row)])


def time_table(lines: Sequence[TimeLine]) -> Table:
    """The percentiles of each row, how steady it was, and where the time of an engine goes."""
    return make_table(_TIMES, lines)


def file_table(rows: Sequence[Row]) -> Table:
    """The file of each row that ran."""
    return make_table(_FILES, [row for row in rows if row.runner])


def _compared(read: Callable[[TensorComparison], float]) -> Callable[[TensorLine], float | None]:
    """Reads a number of the comparison, where there is one."""

    def value(line: TensorLine) -> float | None:
        found = line[0].against_own or line[0].against_reference
        number = math.nan if found is None else read(found.outputs[line[1]])
        return None if math.isnan(number) else number

    return value


def _against(line: TensorLine) -> str:
    """The row that a row is held against."""
    found = line[0].against_own or line[0].against_reference
    return "" if found is None else f"against {found.baseline}"


def _is_judged(line: TensorLine) -> bool:
    """Whether an output is the judged one of its row, which alone has decisions; the reference has one line."""
    found = line[0].against_own or line[0].against_reference
    return found is None or line[1] == found.output


def _divergence(line: TensorLine) -> float | None:
    """KL of the decisions in nats; infinite where one is not finite."""
    found = line[0].against_own or line[0].against_reference
    if found is None or found.decisions is None or not _is_judged(line):
        return None
    return found.decisions.divergence


def _top5(line: TensorLine) -> float | None:
    """Top-5 of a row, where there are more than five classes."""
    return line[0].top5.value if line[0].top5 is not None and _is_judged(line) else None


def _top5_text(line: TensorLine) -> str:
    """Top-5 and its interval."""
    found = line[0].top5
    return "" if found is None else score_text(found)


def _percentile(share: int) -> Callable[[TimeLine], float]:
    """Reads a percentile of the runs."""
    return lambda line: float(np.percentile(line[1].percentiles, share))


def _phase(read: Callable[[Phases], float]) -> Callable[[TimeLine], float | None]:
    """Reads the time of a part of a run of an engine."""
    return lambda line: None if line[1].phases is None else read(line[1].phases)


def _error(value: float) -> str:
    """An error, which has no number where an output is not finite."""
    return small(value) if math.isfinite(value) else "not finite"


def _layers(row: Row) -> str:
    """How many nodes compute in each type; empty where nothing was cast."""
    return "" if row.cast is None else ", ".join(f"{number} in {name}" for name, number in row.cast.layers.items())


def _rounded(read: Callable[[PrecisionReport], int]) -> Callable[[Row], int | None]:
    """Reads a number of the cast; the values of a quantised file are scaled, not rounded to a float type."""
    return lambda row: None if row.cast is None or not row.cast.rounded_tensors else read(row.cast)


_TENSORS: tuple[Column[TensorLine], ...] = (
    Column("row", lambda line: line[0].label, note=_against),
    Column("output", lambda line: line[1]),
    Column("SNR", _compared(lambda found: found.snr_db), decibels),
    Column("cosine, mean", _compared(lambda found: found.cosine_mean), cosine),
    Column("cosine, smallest", _compared(lambda found: found.cosine_min), cosine),
    Column("largest error", _compared(lambda found: found.max_abs), _error),
    Column("p99.9 error", _compared(lambda found: found.p999_abs), _error),
    Column("largest relative", _compared(lambda found: found.max_rel), _error),
    Column("p99.9 relative", _compared(lambda found: found.p999_rel), _error),
    Column("NaN", _compared(lambda found: found.nan_count), count),
    Column("infinite", _compared(lambda found: found.inf_count), count),
    Column("KL, nats", _divergence, _error),
    Column("top-5, 95 % interval", _top5, text=_top5_text),
)
_TIMES: tuple[Column[TimeLine], ...] = (
    Column("model", lambda line: line[0]),
    Column("batch", lambda line: line[1].batch_size),
    Column("clock", lambda line: line[1].clock),
    Column("p50, ms", _percentile(50), milliseconds),
    Column("p90, ms", _percentile(90), milliseconds),
    Column("p95, ms", _percentile(95), milliseconds),
    Column("p99, ms", _percentile(99), milliseconds),
    Column("CV", lambda line: line[1].cv, percent, note=lambda line: "not quiet" if line[1].cv > MAX_CV else ""),
    Column("images/s", lambda line: line[1].throughput, count),
    Column("host to device, ms", _phase(lambda phases: phases.upload_ms), milliseconds),
    Column("compute, ms", _phase(lambda phases: phases.compute_ms), milliseconds),
    Column("device to host, ms", _phase(lambda phases: phases.download_ms), milliseconds),
    Column("enqueue, ms", _phase(lambda phases: phases.enqueue_ms), milliseconds),
)
_FILES: tuple[Column[Row], ...] = (
    Column("row", lambda row: row.label),
    Column("what ran it", lambda row: row.runner),
    Column("size", lambda row: row.size, mebibytes),
    Column("build", lambda row: row.build_seconds, seconds),
    Column("layers", _layers),
    Column("values rounded", _rounded(lambda cast: cast.rounded_values), count),
    Column("to zero", _rounded(lambda cast: cast.to_zero), count),
    Column("to subnormal", _rounded(lambda cast: cast.to_subnormal), count),
    Column("where it differs", lambda row: "" if row.layers is None else str(row.layers).removeprefix("layers: ")),
)
