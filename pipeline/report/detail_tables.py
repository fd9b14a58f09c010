"""The tables behind the rows of a benchmark: tensors, times in parts, files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from vsfix.pipeline.tensor_comparison import TensorComparison
from vsfix.pipeline.tolerance import MAX_CV

from .detail_rows import FileRow, TensorRow, TimeParts
from .number_text import cosine, count, decibels, mebibytes, milliseconds, percent, seconds, share_interval, small
from .sections import LatencySeries
from .table import Column, Table, make_table


def tensor_table(rows: Sequence[TensorRow]) -> Table:
    """One row for each output of each row of a benchmark."""
    return make_table(_TENSORS, rows)


def time_table(series: Sequence[LatencySeries]) -> Table:
    """The percentiles of each series, how steady it was, and its parts."""
    return make_table(_TIMES, [one for one in series if one.parts is not None])


def file_table(rows: Sequence[FileRow]) -> Table:
    """The file of each row."""
    return make_table(_FILES, rows)


def _of_tensors(read: Callable[[TensorComparison], float]) -> Callable[[TensorRow], float | None]:
    """Reads a number of the comparison, where there is one."""
    return lambda row: None if row.comparison is None else read(row.comparison)


def _of_parts(read: Callable[[TimeParts], float | None]) -> Callable[[LatencySeries], float | None]:
    """Reads a number of the parts, where there are any."""
    return lambda series: None if series.parts is None else read(series.parts)


def _percentile(share: int) -> Callable[[LatencySeries], float]:
    """Reads a percentile of the runs."""
    return lambda series: float(np.percentile(series.milliseconds, share))


def _against(row: TensorRow) -> str:
    """What a row is held against."""
    return f"against {row.baseline}" if row.baseline else ""


def _top5(row: TensorRow) -> str:
    """Top-5 and its interval."""
    return "" if row.top5 is None else f"{percent(row.top5.value, 2)} ({share_interval(row.top5.low, row.top5.high)})"


def _clock(series: LatencySeries) -> str:
    """What was timed."""
    return "" if series.parts is None else series.parts.clock


def _steadiness(series: LatencySeries) -> str:
    """A word on times that vary."""
    return "not quiet" if series.parts is not None and series.parts.cv > MAX_CV else ""


def _error(value: float) -> str:
    """An error, which has no number where an output is not finite."""
    return small(value) if math.isfinite(value) else "not finite"


_TENSORS: tuple[Column[TensorRow], ...] = (
    Column("row", lambda row: row.row, note=_against),
    Column("output", lambda row: row.output),
    Column("SNR", _of_tensors(lambda found: found.snr_db), decibels),
    Column("cosine, mean", _of_tensors(lambda found: found.cosine_mean), cosine),
    Column("cosine, smallest", _of_tensors(lambda found: found.cosine_min), cosine),
    Column("largest error", _of_tensors(lambda found: found.max_abs), _error),
    Column("p99.9 error", _of_tensors(lambda found: found.p999_abs), _error),
    Column("largest relative", _of_tensors(lambda found: found.max_rel), _error),
    Column("p99.9 relative", _of_tensors(lambda found: found.p999_rel), _error),
    Column("NaN", _of_tensors(lambda found: found.nan_count), count),
    Column("infinite", _of_tensors(lambda found: found.inf_count), count),
    Column("KL, nats", lambda row: row.divergence, _error),
    Column("top-5, 95 % interval", lambda row: None if row.top5 is None else row.top5.value, text=_top5),
)
_TIMES: tuple[Column[LatencySeries], ...] = (
    Column("model", lambda series: series.name),
    Column("batch", lambda series: series.batch_size),
    Column("clock", _clock),
    Column("p50, ms", _percentile(50), milliseconds),
    Column("p90, ms", _percentile(90), milliseconds),
    Column("p95, ms", _percentile(95), milliseconds),
    Column("p99, ms", _percentile(99), milliseconds),
    Column("CV", _of_parts(lambda parts: parts.cv), percent, note=_steadiness),
    Column("images/s", _of_parts(lambda parts: parts.throughput), count),
    Column("host to device, ms", _of_parts(lambda parts: parts.upload_ms), milliseconds),
    Column("compute, ms", _of_parts(lambda parts: parts.compute_ms), milliseconds),
    Column("device to host, ms", _of_parts(lambda parts: parts.download_ms), milliseconds),
    Column("enqueue, ms", _of_parts(lambda parts: parts.enqueue_ms), milliseconds),
)
_FILES: tuple[Column[FileRow], ...] = (
    Column("row", lambda row: row.row),
    Column("what ran it", lambda row: row.runner),
    Column("size", lambda row: row.size, mebibytes),
    Column("build", lambda row: row.build_seconds, seconds),
    Column("layers", lambda row: row.layers),
    Column("values rounded", lambda row: row.rounded, count),
    Column("to zero", lambda row: row.to_zero, count),
    Column("to subnormal", lambda row: row.to_subnormal, count),
    Column("where it departs", lambda row: row.departs),
)
