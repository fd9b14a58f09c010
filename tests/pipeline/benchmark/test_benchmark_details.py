from __future__ import annotations

from dataclasses import replace

import pytest

from vsfix.pipeline.benchmark.benchmark_details import file_row, tensor_rows, time_parts
from vsfix.pipeline.benchmark.benchmark_page import benchmark_report
from vsfix.pipeline.benchmark.benchmarking import BenchmarkConfig, benchmark
from vsfix.pipeline.benchmark.latency import Latency, LatencyConfig, Phases
from vsfix.pipeline.layer_search import LayerRow, LayerSearch
from vsfix.pipeline.report.detail_rows import TensorRow, TimeParts
from vsfix.pipeline.report.page import render_report


@pytest.fixture(scope="module")
def found(checkpoint_path, onnx_path):
    """A checkpoint, and its export in float32 and float16."""
    latency = LatencyConfig(seconds=0.0001, min_runs=20, warm_up_seconds=0)
    config = BenchmarkConfig(
        "digits", samples=60, precisions=("fp32", "fp16"), repairs=(), latency=latency, latency_batches=(1,)
    )
    return benchmark([checkpoint_path, onnx_path], config)


def test_a_row_stands_against_the_first_of_its_model_and_that_against_the_reference(found):
    reference, export, half = (tensor_rows(row) for row in found.rows)
    assert reference == (TensorRow(found.reference, top5=found.rows[0].top5),)
    assert (export[0].baseline, half[0].baseline) == (found.reference, found.rows[1].label)
    assert half[0].comparison is next(iter(found.rows[2].against_own.outputs.values()))
    assert half[0].divergence == found.rows[2].against_own.decisions.divergence
    assert half[0].top5 == found.rows[2].top5


def test_of_several_outputs_the_first_alone_has_decisions(found):
    own = found.rows[2].against_own
    (tensors,) = own.outputs.values()
    two = replace(found.rows[2], against_own=replace(own, outputs={"a": tensors, "b": tensors}))
    lines = tensor_rows(two)
    assert [(line.output, line.divergence is None) for line in lines] == [("a", False), ("b", True)]


def test_the_parts_are_those_of_an_engine_and_of_nothing_else():
    times = Latency(
        8, "cuda events", 20, 1, 2, 3, 4, 0.1, 8000, 1, (1, 1), True, (1.0,) * 101, Phases(1, 2, 3, 4), True
    )
    assert time_parts(times) == TimeParts("cuda events", 0.1, 8000, 1, 2, 3, 4)
    assert time_parts(replace(times, phases=None, clock="host")) == TimeParts("host", 0.1, 8000)


def test_a_file_tells_what_its_cast_did_and_where_it_departs(found):
    assert file_row(found.rows[1]).layers == ""
    half = found.rows[2]
    worst = LayerRow("t", "fc1", "Gemm", 12.0, 0.5)
    row = file_row(replace(half, layers=LayerSearch("net.onnx", 4, (), worst, worst)))
    assert (row.size, row.rounded) == (half.size, half.cast.rounded_values)
    assert "float16" in row.layers
    assert row.departs == "the first that departs is 'fc1' (Gemm, 12.0 dB), the worst 'fc1' (Gemm, 12.0 dB)"


def test_the_page_holds_the_tensors_the_percentiles_and_the_files(found):
    page = render_report(benchmark_report(found))
    for name in ("tensors", "times", "files"):
        assert f'<table id="{name}"' in page
    (tensors,) = found.rows[2].against_own.outputs.values()
    assert f"{tensors.cosine_min:.7f}" in page
    assert f"{tensors.p999_rel:.2g}" in page
    assert f'data-number="{found.rows[0].latencies[0].p95_ms!r}"' in page


def test_what_did_not_run_has_neither_tensors_nor_a_file(found):
    skipped = replace(found.rows[2], status="SKIP", top1=None, against_own=None, against_reference=None, runner="")
    report = benchmark_report(replace(found, rows=(*found.rows[:2], skipped)))
    assert [row.row for row in report.tensors] == [row.row for row in report.files] == [r.label for r in found.rows[:2]]
