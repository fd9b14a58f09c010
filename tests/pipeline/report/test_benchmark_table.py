from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from vsfix.pipeline.benchmark.benchmarking import BenchmarkConfig, benchmark
from vsfix.pipeline.benchmark.latency import LatencyConfig
from vsfix.pipeline.report.benchmark_table import benchmark_lines, benchmark_table, fits


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


def drawn(table, width):
    """The output of a terminal of this width."""
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_a_table_that_fits_shows_every_number_and_one_that_does_not_would_cut_some(found):
    table = benchmark_table(found)
    narrowest = next(width for width in range(40, 300) if fits(table, width))
    assert "\N{HORIZONTAL ELLIPSIS}" not in drawn(table, narrowest)
    assert "\N{HORIZONTAL ELLIPSIS}" in drawn(table, narrowest - 20)
    assert narrowest <= 160


def test_a_column_without_numbers_is_left_out(found):
    bare = replace(found, rows=tuple(replace(row, latencies=()) for row in found.rows))
    headings = {column.header for column in benchmark_table(found).columns}
    assert headings - {column.header for column in benchmark_table(bare).columns} == {
        "p50 ms",
        "p99 ms",
        "images/s",
        "ratio",
    }


def test_the_lines_for_a_narrow_terminal_hold_what_the_table_holds(found):
    lines = list(benchmark_lines(found))
    assert max(map(len, lines)) <= 80
    shown = drawn(benchmark_table(found), 300)
    numbers = [word for line in lines for word in line.replace(",", " ").split() if word[0].isdigit()]
    assert len(numbers) > 20
    assert all(word in shown for word in numbers)
    skipped = replace(found.rows[2], status="SKIP", top1=None, against_own=None, latencies=())
    assert list(benchmark_lines(replace(found, rows=(*found.rows[:2], skipped))))[-1].endswith("fp16: SKIP")


def test_the_command_takes_the_lines_where_the_terminal_is_narrow(call, onnx_path, monkeypatch):
    arguments = ("--data", "digits", "--samples", 20, "--seconds", 0, "--repair", "none")
    assert "runs on" in call("benchmark", onnx_path, *arguments).stdout
    monkeypatch.setattr("vsfix.pipeline.host.console.PIPE_WIDTH", 60)
    narrow = call("benchmark", onnx_path, *arguments).stdout
    assert "runs on" not in narrow
    assert "onnxruntime, fp32: PASS\n  top-1 % (95 %) " in narrow
