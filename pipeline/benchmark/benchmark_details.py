"""What stands behind the rows of a benchmark, as the page shows it."""

from __future__ import annotations

from dataclasses import replace

from vsfix.pipeline.report.detail_rows import FileRow, TensorRow, TimeParts

from .latency import Latency
from .result import Row


def tensor_rows(row: Row) -> tuple[TensorRow, ...]:
    """A row that ran against the first one of its model, the first one of a model against the reference."""
    if row.top1 is None:
        return ()
    found = row.against_own or row.against_reference
    if found is None:
        return (TensorRow(row.label, top5=row.top5),)
    lines = [TensorRow(row.label, found.baseline, name, tensors) for name, tensors in found.outputs.items()]
    first = TensorRow(
        row.label, found.baseline, lines[0].output, lines[0].comparison, found.decisions.divergence, row.top5
    )
    return (first, *lines[1:])


def time_parts(latency: Latency) -> TimeParts:
    """What was timed, and where the time of an engine goes."""
    parts = latency.phases
    if parts is None:
        return TimeParts(latency.clock, latency.cv, latency.throughput)
    times = (parts.upload_ms, parts.compute_ms, parts.download_ms, parts.enqueue_ms)
    return TimeParts(latency.clock, latency.cv, latency.throughput, *times)


def file_row(row: Row) -> FileRow:
    """The file of a row that ran."""
    departs = "" if row.layers is None else str(row.layers).removeprefix("layers: ")
    found = FileRow(row.label, row.runner, row.size, row.build_seconds, departs=departs)
    if row.cast is None:
        return found
    found = replace(found, layers=", ".join(f"{number} in {name}" for name, number in row.cast.layers.items()))
    if not row.cast.rounded_tensors:  # quantised: its values are scaled, not rounded to a float type
        return found
    return replace(
        found,
        rounded=row.cast.rounded_values,
        to_zero=row.cast.to_zero,
        to_subnormal=row.cast.to_subnormal,
    )
