from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vsfix import optimize
from vsfix.pipeline.benchmark.benchmarking import BenchmarkConfig, benchmark
from vsfix.pipeline.benchmark.latency import LatencyConfig
from vsfix.pipeline.benchmark.repair_trials import parse_repair_trials
from vsfix.pipeline.benchmark.result import Benchmark
from vsfix.pipeline.pages.benchmark_page import benchmark_report
from vsfix.pipeline.pages.page import render_report
from vsfix.pipeline.report.sections import BenchmarkRow

NO_LATENCY = LatencyConfig(seconds=0.0)


@pytest.fixture(scope="module")
def found(checkpoint_path: Path, onnx_path: Path) -> Benchmark:
    config = BenchmarkConfig(
        data="digits",
        samples=100,
        precisions=("fp32", "fp16"),
        repairs=parse_repair_trials(["paired:16", "exact:32"]),
        latency=LatencyConfig(seconds=0.0001, min_runs=20, warm_up_seconds=0),
        latency_batches=(1, 4),
    )
    return benchmark([checkpoint_path, onnx_path], config)


def test_every_number_of_a_row_is_that_of_the_benchmark(found):
    report = benchmark_report(found)
    assert [row.model for row in report.benchmark] == [row.model for row in found.rows]
    half, row = report.benchmark[-1], found.rows[-1]
    gain, own = row.against_reference.difference, row.against_own
    assert gain.gain == pytest.approx(row.score.count - found.rows[0].score.count, abs=1e-9)
    assert half == BenchmarkRow(
        *(row.model, "onnxruntime", "fp16", row.score, gain),
        *(own.retention, own.decisions.agreement, None, min(one.snr_db for one in own.outputs.values())),
        *(1, row.latencies[0].p50_ms, row.latencies[0].p99_ms, max(one.throughput for one in row.latencies), "PASS"),
    )
    first = report.benchmark[0]
    assert (first.gain, first.retention, first.agreement, first.snr_db) == (None, None, None, None)


def test_the_other_sections_are_filled_from_the_rows_and_the_trials(found):
    report = benchmark_report(found)
    assert [series.batch_size for series in report.latencies] == [1, 4] * 3
    assert all(series.runs >= 20 and len(series.milliseconds) == 101 for series in report.latencies)
    assert [(budget.candidate, budget.score) for budget in report.budgets] == [
        (row.label, found.rows[0].score) for row in found.rows[1:]
    ]
    assert [row.images for row in report.accuracies] == [None, 16, 32]
    assert report.is_trial
    assert "command" not in report.provenance.facts
    page = render_report(report)
    assert "without writing a file: 2 of 2 BatchNorms, by the method paired" in page
    assert "What was tried" in page


def test_what_a_repair_is_worth_and_the_budgets_of_repaired_rows_come_first(found, onnx_path, tmp_path):
    optimize(onnx_path, "digits", method="match", samples=32, batch_size=32).save(tmp_path / "repaired.onnx")
    config = BenchmarkConfig("digits", samples=100, precisions=("fp32", "fp16"), repairs=(), latency=NO_LATENCY)
    repaired = benchmark([onnx_path, tmp_path / "repaired.onnx"], config)
    report = benchmark_report(repaired)
    worth = repaired.rows[2].against_unrepaired.difference
    assert [row.repair_gain for row in report.benchmark] == [None, None, worth, None]
    assert [budget.repaired for budget in report.budgets] == [True, True, False]
    page = render_report(replace(report, budgets=report.budgets[::-1]))
    assert page.count("<details open>") == 3
    assert page.count("repaired: against") == 2


def test_a_row_that_did_not_run_says_why_and_leaves_the_rest_empty(found):
    skipped = replace(
        found.rows[-1], status="SKIP", reasons=("no GPU", "no driver"), score=None, against_reference=None
    )
    skipped = replace(skipped, against_own=None, budget=(), latencies=())
    report = benchmark_report(replace(found, rows=(*found.rows[:-1], skipped), repairs=None))
    assert report.benchmark[-1] == BenchmarkRow(
        skipped.model, "onnxruntime", "fp16", status="SKIP", note="no GPU; no driver"
    )
    assert len(report.budgets) == len(found.rows) - 2
    assert (report.repair, report.accuracies) == (None, ())


def test_the_command_writes_the_page(call, onnx_path, tmp_path):
    arguments = ("--data", "digits", "--samples", 50, "--seconds", 0, "--repair", "none", "--html", tmp_path / "b.html")
    assert call("benchmark", onnx_path, *arguments).exit_code == 0
    assert "</html>" in (tmp_path / "b.html").read_text()
    assert call("benchmark", onnx_path, *arguments).exit_code == 2
