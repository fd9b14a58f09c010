from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from vsfix.pipeline.benchmark.result import Comparison, RepairTrials, Row
from vsfix.pipeline.benchmark.verdict import judge
from vsfix.pipeline.comparison.accuracy import accuracy_row
from vsfix.pipeline.comparison.decisions import compare_decisions
from vsfix.pipeline.comparison.proportion import proportion

LABELS = np.arange(200) % 4


def row_of(right, *, repaired=False, reference=None):
    """A row that is right on the first so many of 200 samples."""
    classes = np.where(np.arange(200) < right, LABELS, (LABELS + 1) % 4)
    logits = np.eye(4)[classes]
    row = Row("model, onnxruntime, fp32", "model", "onnxruntime", "fp32", repaired, "PASS", top1=proportion(right, 200))
    if reference is None:
        return row, logits
    against = Comparison("model, onnxruntime, fp32", {}, compare_decisions(reference, logits, LABELS))
    return replace(row, against_reference=against, against_unrepaired=against if repaired else None), logits


def repairs_of(before, after, *, repaired=True, model="model"):
    """Repairs with the first of these accuracies as trained; the samples are right from the first on."""
    trained, fixed = (np.arange(200) < right for right in (before, after))
    rows = (accuracy_row("as trained", trained), accuracy_row("paired", fixed, images=32, trained=trained))
    report = SimpleNamespace(batch_norms=[SimpleNamespace(repaired=repaired)])
    return RepairTrials(model, report, rows)


@pytest.mark.parametrize(
    ("before", "after", "status", "words"),
    [
        (
            *(80, 150, "PASS"),
            "Repaired: top-1 40.00 -> 75.00 % (+35.00 percentage points, 70 fixes, 0 regressions, p < 0.001)",
        ),
        (150, 151, "PASS", "no more than chance apart"),
        (150, 80, "FAIL", "The repair lost accuracy: top-1 75.00 -> 40.00 % (-35.00 percentage points"),
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
        (repairs_of(80, 83), "PASS", "no more effect on the accuracy than chance"),
        (repairs_of(150, 80), "FAIL", "the repair loses accuracy"),
        (repairs_of(80, 80, repaired=False), "PASS", "Nothing to repair: top-1 40.00 %"),
        (replace(repairs_of(80, 80), report=None, refused=("paired:32: too few",)), "WARN", "No repair could be made"),
        # 8 of 200 more, none less: the intervals overlap by far, and the pairs are sure.
        (repairs_of(150, 158), "WARN", "can be repaired: top-1 75.00 -> 79.00 % with paired, 32 images, p = 0.008"),
        (repairs_of(158, 150), "FAIL", "the repair loses accuracy"),
        (repairs_of(80, 150, model="net.onnx"), "WARN", "can be repaired: net.onnx, top-1 40.00"),
    ],
)
def test_without_a_repaired_model_the_repairs_of_the_run_are_judged(repairs, status, words):
    found = judge([row_of(80)[0]], repairs)
    assert found[0] == status
    assert words in found[1]


def test_of_several_repaired_models_the_one_that_lost_accuracy_is_told():
    reference, logits = row_of(100)
    good, bad = (row_of(right, repaired=True, reference=logits)[0] for right in (150, 80))
    status, verdict = judge([reference, good, replace(bad, model="bad.onnx")], None)
    assert status == "FAIL"
    assert verdict.startswith("The repair lost accuracy: bad.onnx, top-1 50.00 -> 40.00 %")


def test_a_cast_of_a_repaired_model_is_not_judged_as_its_repair():
    reference, logits = row_of(150, repaired=True)
    cast, _ = row_of(80, repaired=True, reference=logits)
    found = judge([reference, replace(cast, against_unrepaired=None)], None)
    assert found == ("PASS", "The reference is repaired, and no row shows it as it was before: top-1 75.00 %.")


def test_what_a_repair_is_held_against_is_named_where_it_is_not_the_reference():
    reference, _ = row_of(190)
    _, logits = row_of(80)
    repaired, _ = row_of(150, repaired=True, reference=logits)
    against = replace(repaired.against_unrepaired, baseline="net.onnx, onnxruntime, fp32")
    status, verdict = judge([reference, replace(repaired, against_unrepaired=against)], None)
    assert status == "PASS"
    assert verdict.startswith(
        "Repaired: top-1 40.00 -> 75.00 % (+35.00 percentage points against net.onnx, onnxruntime, fp32, 70 "
    )


def test_rows_that_differ_or_did_not_run_are_counted_and_no_pass():
    row, _ = row_of(80)
    status, verdict = judge([row, replace(row, status="WARN"), replace(row, status="SKIP", top1=None)], None)
    assert status == "WARN"
    assert "1 of 3 rows differ" in verdict
    assert "1 of 3 rows did not run" in verdict
    assert judge([row, replace(row, status="FAIL", top1=None)], None)[0] == "FAIL"
