"""A report with every section, around the repair of a small model."""

from __future__ import annotations

import numpy as np

from vsfix.pipeline.comparison.accuracy import TOP_1, AccuracyRow
from vsfix.pipeline.comparison.error_budget import BudgetStep
from vsfix.pipeline.comparison.score_difference import Score, compare_scores, score_of
from vsfix.pipeline.repair.repair_report import RepairReport
from vsfix.pipeline.report.sections import BenchmarkRow, ErrorBudget, LatencySeries, Provenance, Report, StepRow


def accuracy(model: str, images: int | None, right: int) -> AccuracyRow:
    return AccuracyRow(model, images, top1(right, 500))


def top1(right: int, total: int) -> Score:
    return score_of(TOP_1, (np.arange(total) < right).astype(float))


def full_report(repair: RepairReport) -> Report:
    exact = float("inf")
    order = np.arange(500)
    before, after = order < 385, (order >= 5) & (order < 469)
    gain = compare_scores(TOP_1, before.astype(float), after.astype(float))
    return Report(
        title="Repair of net.onnx",
        status="PASS",
        verdict="Repaired 3 of 3 BatchNorms; top-1 77.0 -> 93.0 %.",
        warnings=("read this first",),
        repair=repair,
        accuracies=(
            accuracy("as trained", None, 385),
            accuracy("repaired, paired", 32, 465),
            accuracy("repaired, exact", 32, 459),
            accuracy("repaired, exact", 1297, 464),
        ),
        benchmark=(
            BenchmarkRow("net.onnx", "onnxruntime", "fp32", top1(385, 500), p50_ms=1.5, p99_ms=1.9),
            BenchmarkRow("exact.onnx", "onnxruntime", "fp32", snr_db=exact),
            BenchmarkRow("half.onnx", "onnxruntime", "fp16", top1(464, 500), gain, 0.99, 0.998, None, 65.8),
        ),
        budgets=(
            ErrorBudget(
                "half.onnx",
                "checkpoint.pt",
                (
                    BudgetStep("export", "checkpoint.pt, torch", "net.onnx, onnxruntime", 129.8, 6e-7, 1.0, 0.7507),
                    BudgetStep("cast", "net.onnx, onnxruntime", "half.onnx, onnxruntime", 65.8, 8.7e-4, 0.99, 0.7505),
                    BudgetStep("noise floor", "half.onnx", "half.onnx", exact, 0.0, None, None),
                ),
                top1(7507, 10000),
            ),
        ),
        latencies=(
            LatencySeries("net.onnx", 1, (1.0, 1.5, 2.0)),
            LatencySeries("repaired.onnx", 8, (1.5, 2.0, 2.5)),
        ),
        steps=(StepRow("export", "PASS", 137.7, 2.9e-6, 1.0),),
        provenance=Provenance("vsfix optimize 'my net.onnx' --html report.html", {"torch": "2.13.0"}),
    )
