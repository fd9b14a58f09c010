from __future__ import annotations

import io
from dataclasses import replace

import pytest

from vsfix.pipeline.benchmark.benchmarking import BenchmarkConfig, benchmark
from vsfix.pipeline.benchmark.latency import LatencyConfig
from vsfix.pipeline.host.table_text import PlainConsole, print_table_on
from vsfix.pipeline.report.benchmark_table import _numbers, benchmark_table


@pytest.fixture(scope="module")
def found(checkpoint_path, onnx_path):
    """A checkpoint, and its export in float32 and float16, timed."""
    latency = LatencyConfig(seconds=0.0001, min_runs=20, warm_up_seconds=0)
    config = BenchmarkConfig(
        "digits", samples=60, precisions=("fp32", "fp16"), repairs=(), latency=latency, latency_batches=(1,)
    )
    measured = benchmark([checkpoint_path, onnx_path], config)
    names = {
        row.model: name for row, name in zip(measured.rows, ("run/checkpoint.pt", "net.onnx", "net.onnx"), strict=True)
    }
    return replace(measured, rows=tuple(replace(row, model=names[row.model]) for row in measured.rows))


def test_a_column_without_numbers_is_left_out(found):
    bare = replace(found, rows=tuple(replace(row, latencies=()) for row in found.rows))
    headings = {column.header for column in benchmark_table(found).columns}
    assert headings - {column.header for column in benchmark_table(bare).columns} == {
        "p50 ms",
        "p99 ms",
        "images/s",
        "ratio",
    }


@pytest.mark.parametrize("width", [60, 80, 99, 100, 140, 200])
def test_a_terminal_of_any_width_shows_every_number(found, width):
    file = io.StringIO()
    print_table_on(PlainConsole(file=file, width=width), benchmark_table(found))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    numbers = [cell for row in found.rows for cell in _numbers(row, found) if cell != "-"]
    assert len(numbers) > 20
    shown = " ".join(file.getvalue().split())
    assert all(number in shown for number in numbers)
