from __future__ import annotations

from dataclasses import replace

import pytest

from vsfix.pipeline.benchmark.benchmarking import BenchmarkConfig, benchmark
from vsfix.pipeline.benchmark.latency import Latency, LatencyConfig, Phases
from vsfix.pipeline.comparison.layer_search import LayerRow, LayerSearch
from vsfix.pipeline.pages.benchmark_details import file_table, tensor_table, time_table
from vsfix.pipeline.pages.benchmark_page import benchmark_report
from vsfix.pipeline.pages.page import render_report
from vsfix.pipeline.report.number_text import count


@pytest.fixture(scope="module")
def found(checkpoint_path, onnx_path):
    """A checkpoint, and its export in float32 and float16."""
    latency = LatencyConfig(seconds=0.0001, min_runs=20, warm_up_seconds=0)
    config = BenchmarkConfig(
        "digits", samples=60, precisions=("fp32", "fp16"), repairs=(), latency=latency, latency_batches=(1,)
    )
    return benchmark([checkpoint_path, onnx_path], config)


def column(table, heading):
    """The texts of one column."""
    index = [head.text for head in table.headings].index(heading)
    return [row[index].text for row in table.rows]


def test_a_row_stands_against_the_first_of_its_model_and_that_against_the_reference(found):
    table = tensor_table(found.rows)
    assert [row[0].note for row in table.rows] == [
        "",
        f"against {found.reference}",
        f"against {found.rows[1].label}",
    ]
    own = found.rows[2].against_own
    assert column(table, "SNR")[2] == f"{next(iter(own.outputs.values())).snr_db:.1f} dB"
    assert column(table, "KL, nats")[::2] == ["–", f"{own.decisions.divergence:.2g}"]
    assert column(table, "top-5, 95 % interval")[2].startswith(f"{found.rows[2].top5.value:.2f} % (")


def test_of_several_outputs_the_judged_one_alone_has_decisions(found):
    own = found.rows[2].against_own
    (tensors,) = own.outputs.values()
    two = replace(found.rows[2], against_own=replace(own, outputs={"a": tensors, "b": tensors}, output="b"))
    table = tensor_table([two])
    assert column(table, "output") == ["a", "b"]
    assert [text == "–" for text in column(table, "KL, nats")] == [True, False]
    assert [text == "–" for text in column(table, "top-5, 95 % interval")] == [True, False]


def test_the_parts_are_those_of_an_engine_and_of_nothing_else():
    times = Latency(
        8, "cuda events", 20, 1, 2, 3, 4, 0.1, 8000, 1, (1, 1), True, (1.0,) * 101, Phases(1, 2, 3, 4), True
    )
    table = time_table([("engine", times), ("host", replace(times, phases=None, clock="host", cv=0.01))])
    parts = ("host to device, ms", "compute, ms", "device to host, ms", "enqueue, ms")
    assert [column(table, part)[0] for part in parts] == ["1.00", "2.00", "3.00", "4.00"]
    assert {column(table, part)[1] for part in parts} == {"–"}
    assert column(table, "clock") == ["cuda events", "host"]
    assert [row[-6].note for row in table.rows] == ["not quiet", ""]


def test_a_file_tells_what_its_cast_did_and_where_it_differs(found):
    half = found.rows[2]
    worst = LayerRow("t", "fc1", "Gemm", 12.0, 0.5)
    table = file_table([found.rows[1], replace(half, layers=LayerSearch("net.onnx", 4, (), worst, worst))])
    assert column(table, "values rounded") == ["–", count(half.cast.rounded_values)]
    first, second = column(table, "layers")
    assert (first, "float16" in second) == ("–", True)
    differs = "the first that differs is 'fc1' (Gemm, 12.0 dB), the worst 'fc1' (Gemm, 12.0 dB)"
    assert column(table, "where it differs") == ["–", differs]


def test_the_page_holds_the_tensors_the_percentiles_and_the_files(found):
    page = render_report(benchmark_report(found))
    for name in ("tensors", "times", "files"):
        assert f'<table id="{name}"' in page
    (tensors,) = found.rows[2].against_own.outputs.values()
    assert f"{tensors.cosine_min:.7f}" in page
    assert f"{tensors.p999_rel:.2g}" in page
    assert f'data-number="{found.rows[0].latencies[0].p95_ms!r}"' in page


def test_what_did_not_run_has_neither_tensors_nor_a_file(found):
    skipped = replace(found.rows[2], status="SKIP", score=None, against_own=None, against_reference=None, runner="")
    report = benchmark_report(replace(found, rows=(*found.rows[:2], skipped)))
    labels = [row.label for row in found.rows[:2]]
    assert column(report.tensors, "row") == column(report.files, "row") == labels
