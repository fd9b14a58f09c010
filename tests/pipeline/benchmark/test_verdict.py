from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from vsfix.pipeline.accuracy import AccuracyRow
from vsfix.pipeline.benchmark.result import Comparison, RepairTrials, Row
from vsfix.pipeline.benchmark.verdict import judge
from vsfix.pipeline.decisions import compare_decisions
from vsfix.pipeline.proportion import proportion, wilson_interval

LABELS = np.arange(200) % 4


def row_of(right, *, repaired=False, reference=None):
    """A row that is right on the first so many of 200 samples."""
    classes = np.where(np.arange(200) < right, LABELS, (LABELS + 1) % 4)
    logits = np.eye(4)[classes]
    row = Row("model, onnxruntime, fp32", "model", "onnxruntime", "fp32", repaired, "PASS", top1=proportion(right, 200))
    if reference is None:
        return row, logits
    decisions = compare_decisions(reference, logits, LABELS)
    return replace(row, against_reference=Comparison("reference", {}, decisions)), logits


def repairs_of(before, after, *, repaired=True):
    """Repairs with the first of these accuracies as trained."""
    rows = [
        AccuracyRow(name, images, right / 200, *wilson_interval(right, 200))
        for name, images, right in (("as trained", None, before), ("paired", 32, after))
    ]
    report = SimpleNamespace(batch_norms=[SimpleNamespace(repaired=repaired)])
    return RepairTrials("model", report, tuple(rows))


@pytest.mark.parametrize(
    ("before", "after", "status", "words"),
    [
        (80, 150, "PASS", "Repaired: top-1 40.00 -> 75.00 % (+35.00 points, 70 samples better, 0 worse, p < 0.001)"),
        (150, 151, "PASS", "no more than chance apart"),
        (150, 80, "FAIL", "The repair lost accuracy: top-1 75.00 -> 40.00 % (-35.00 points"),
    ],
)
def test_a_repaired_model_is_judged_against_the_reference(before, after, status, words):
    reference, logits = row_of(before)
    repaired, _ = row_of(after, repaired=True, reference=logits)
    found = judge([reference, repaired], None)
    assert found[0] == status
    assert words in found[1]


@pytest.mark.parametrize(
    ("repairs", "status", "words"),
    [
        (None, "PASS", "No repair was looked for: top-1 40.00 %"),
        (repairs_of(80, 150), "WARN", "can be repaired: top-1 40.00 -> 75.00 % with paired, 32 images"),
        (repairs_of(80, 82), "PASS", "no more effect on the accuracy than chance"),
        (repairs_of(150, 80), "FAIL", "the repair loses accuracy"),
        (repairs_of(80, 80, repaired=False), "PASS", "Nothing to repair: top-1 40.00 %"),
        (RepairTrials("model", None, (), ("paired:32: too few",)), "WARN", "No repair could be made"),
    ],
)
def test_without_a_repaired_model_the_repairs_of_the_run_are_judged(repairs, status, words):
    found = judge([row_of(80)[0]], repairs)
    assert found[0] == status
    assert words in found[1]


def test_rows_that_depart_or_did_not_run_are_counted_and_no_pass():
    row, _ = row_of(80)
    status, verdict = judge([row, replace(row, status="WARN"), replace(row, status="SKIP", top1=None)], None)
    assert status == "WARN"
    assert "1 of 3 rows depart" in verdict
    assert "1 of 3 rows did not run" in verdict
