"""What stands behind the rows of a benchmark, for those who look closer: tensors, times in parts, files."""

from __future__ import annotations

from dataclasses import dataclass

from vsfix.pipeline.proportion import Proportion
from vsfix.pipeline.tensor_comparison import TensorComparison


@dataclass(frozen=True)
class TensorRow:
    """One output of a row of a benchmark against the same output of another row.

    Attributes:
        row: the row in words.
        baseline: the other one; empty for the row that all are held against.
        output: its name; empty likewise.
        comparison: of the two; None likewise.
        divergence: KL of the decisions in nats, for the first output; infinite where one is not finite.
        top5: of the row, where there are more than five classes.
    """

    row: str
    baseline: str = ""
    output: str = ""
    comparison: TensorComparison | None = None
    divergence: float | None = None
    top5: Proportion | None = None


@dataclass(frozen=True)
class TimeParts:
    """What was timed of a latency, how steady it was, and where the time of an engine goes; medians in milliseconds.

    Attributes:
        clock: `cuda events` around the execution, or the `host` with its copies.
        cv: standard deviation over mean.
        throughput: samples per second, at the median.
        upload_ms: host to device; None for what is no engine, likewise the next three.
        compute_ms: on the device.
        download_ms: device to host.
        enqueue_ms: until the host is free again.
    """

    clock: str
    cv: float
    throughput: float
    upload_ms: float | None = None
    compute_ms: float | None = None
    download_ms: float | None = None
    enqueue_ms: float | None = None


@dataclass(frozen=True)
class FileRow:
    """The file that a row of a benchmark ran.

    Attributes:
        row: the row in words.
        runner: what ran it, with its provider or GPU.
        size: in bytes; weights in other files are not counted.
        build_seconds: of TensorRT's builder; None where nothing was built.
        layers: how many nodes compute in each type, in words; empty where nothing was cast.
        rounded: values that the cast rounded; None where nothing was cast, likewise the next two.
        to_zero: of these values to zero.
        to_subnormal: of these values to subnormal numbers.
        departs: the first and the worst layer of a row that is not PASS; empty for others.
    """

    row: str
    runner: str
    size: int
    build_seconds: float | None = None
    layers: str = ""
    rounded: int | None = None
    to_zero: int | None = None
    to_subnormal: int | None = None
    departs: str = ""
