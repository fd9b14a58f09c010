from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from vsfix.pipeline.benchmark.result import Comparison, RepairTrials, Row
from vsfix.pipeline.benchmark.verdict import verdict_of
from vsfix.pipeline.comparison.accuracy import TOP_1, accuracy_row
from vsfix.pipeline.comparison.decisions import compare_decisions
from vsfix.pipeline.comparison.metric import Metric
from vsfix.pipeline.comparison.score_difference import compare_scores, score_of
from vsfix.pipeline.comparison.tensor_comparison import compare_tensors

R2, ERROR = Metric("r2", "y", "labels"), Metric("mse", "y", "labels")
RUNS = ("model, onnxruntime, fp32", "model", "onnxruntime", "fp32")


def row_of(right, *, repaired=False, reference=None):
    """A row that is right on the first so many of 200 samples."""
    return scored((np.arange(200) < right).astype(float), TOP_1, repaired=repaired, reference=reference)


def scored(scores, metric, *, repaired=False, reference=None):
    """A row with these scores, and the scores."""
    row = Row(*RUNS, repaired, "PASS", runner="ort", score=score_of(metric, scores))
    if reference is None:
        return row, scores
    against = Comparison(RUNS[0], {}, "y", None, difference=compare_scores(metric, reference, scores))
    return replace(row, against_reference=against, against_unrepaired=against if repaired else None), scores


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
    found = verdict_of([reference, repaired], None)
    assert found[0] == status
    assert words in found[1]


def test_a_large_loss_that_may_be_chance_is_no_pass():
    reference, scores = scored(np.ones(8), TOP_1)
    repaired, _ = scored((np.arange(8) >= 5).astype(float), TOP_1, repaired=True, reference=scores)
    status, verdict = verdict_of([reference, repaired], None)
    assert (status, "too few to tell whether the loss is chance: top-1 100.00 -> 37.50 %" in verdict) == ("WARN", True)


@pytest.mark.parametrize(("samples", "status"), [(7, "WARN"), (8, "FAIL")])
def test_what_too_few_labels_say_of_a_repair_is_no_pass(samples, status):
    right, wrong = np.ones(samples), np.zeros(samples)
    reference, scores = scored(right, TOP_1)
    repaired, _ = scored(wrong, TOP_1, repaired=True, reference=scores)
    rows = (accuracy_row("as trained", right), accuracy_row("paired", wrong, images=32, trained=right))
    trials = RepairTrials("model", SimpleNamespace(batch_norms=[SimpleNamespace(repaired=True)]), rows)
    for found, words in (verdict_of([reference, repaired], None), verdict_of([reference], trials)):
        assert found == status
        assert ("7 labelled samples can't tell, of which 8 are needed," in words) == (samples == 7)


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
    found = verdict_of([row_of(80)[0]], repairs)
    assert found[0] == status
    assert words in found[1]


def test_of_several_repaired_models_the_one_that_lost_accuracy_is_told():
    reference, logits = row_of(100)
    good, bad = (row_of(right, repaired=True, reference=logits)[0] for right in (150, 80))
    status, verdict = verdict_of([reference, good, replace(bad, model="bad.onnx")], None)
    assert status == "FAIL"
    assert verdict.startswith("The repair lost accuracy: bad.onnx, top-1 50.00 -> 40.00 %")


def test_a_cast_of_a_repaired_model_is_not_judged_as_its_repair():
    reference, logits = row_of(150, repaired=True)
    cast, _ = row_of(80, repaired=True, reference=logits)
    found = verdict_of([reference, replace(cast, against_unrepaired=None)], None)
    assert found == ("PASS", "The reference is repaired, and no row shows it as it was before: top-1 75.00 %.")


def test_what_a_repair_is_held_against_is_named_where_it_is_not_the_reference():
    reference, _ = row_of(190)
    _, logits = row_of(80)
    repaired, _ = row_of(150, repaired=True, reference=logits)
    against = replace(repaired.against_unrepaired, baseline="net.onnx, onnxruntime, fp32")
    status, verdict = verdict_of([reference, replace(repaired, against_unrepaired=against)], None)
    assert status == "PASS"
    assert verdict.startswith(
        "Repaired: top-1 40.00 -> 75.00 % (+35.00 percentage points against net.onnx, onnxruntime, fp32, 70 "
    )


def test_rows_that_differ_or_did_not_run_are_counted_and_no_pass():
    row, _ = row_of(80)
    status, verdict = verdict_of([row, replace(row, status="WARN"), replace(row, status="SKIP", runner="")], None)
    assert status == "WARN"
    assert "1 of 3 rows differ" in verdict
    assert "1 of 3 rows did not run" in verdict
    assert verdict_of([row, replace(row, status="FAIL", runner="")], None)[0] == "FAIL"


SPREAD = np.random.default_rng(0).normal(0, 0.05, 200)


@pytest.mark.parametrize(
    ("metric", "before", "after", "status", "words"),
    [
        (R2, 0.27, 0.87, "PASS", "Repaired: R2 0.27 -> 0.87 (+0.6, p < 0.001)."),
        (R2, 0.87, 0.27, "FAIL", "The repair made it worse: R2 0.87 -> 0.27 (-0.6, p < 0.001)."),
        (ERROR, -0.5, -0.2, "PASS", "Repaired: mean squared error 0.5 -> 0.2 (0.3 lower, p < 0.001)."),
        (ERROR, -0.2, -0.5, "FAIL", "The repair made it worse: mean squared error 0.2 -> 0.5 (0.3 higher, p < 0.001)."),
    ],
)
def test_a_repair_is_told_in_the_words_of_its_metric(metric, before, after, status, words):
    noise = SPREAD - SPREAD.mean()
    reference, scores = scored(before + noise, metric)
    repaired, _ = scored(after + noise[::-1], metric, repaired=True, reference=scores)
    assert verdict_of([reference, repaired], None) == (status, words)


def test_repairs_of_the_run_are_judged_by_an_error_where_lower_is_better():
    noise = SPREAD - SPREAD.mean()
    before, after = -0.5 + noise, -0.2 + noise[::-1]
    rows = (
        accuracy_row("as trained", before, metric=ERROR),
        accuracy_row("match", after, metric=ERROR, images=32, trained=before),
    )
    report = SimpleNamespace(batch_norms=[SimpleNamespace(repaired=True)])
    status, verdict = verdict_of([scored(before, ERROR)[0]], RepairTrials("model", report, rows))
    assert status == "WARN"
    assert (
        "can be repaired: mean squared error 0.5 -> 0.2 with match, 32 images, p < 0.001; run `vsfix optimize`"
        in verdict
    )
    turned = (replace(rows[1], p_value=None), replace(rows[0], images=32, p_value=0.001))
    status, verdict = verdict_of([scored(after, ERROR)[0]], RepairTrials("model", report, turned))
    assert status == "FAIL"
    assert "the repair makes it worse: mean squared error 0.2 -> 0.5" in verdict


def test_without_labels_nothing_passes_and_the_farthest_row_is_told():
    bare = Row(*RUNS, False, "PASS", runner="ort")
    assert verdict_of([bare], None)[0] == "WARN"
    logits = np.eye(4)[np.arange(200) % 4]
    rows = [bare]
    for flipped in (2, 10):
        found = np.where(np.arange(200)[:, None] < flipped, np.roll(logits, 1, axis=1), logits)
        tensors = compare_tensors(logits, found)
        against = Comparison(RUNS[0], {"y": tensors}, "y", compare_decisions(logits, found))
        rows.append(replace(bare, against_reference=against))
    status, verdict = verdict_of(rows, None)
    assert status == "WARN"
    assert verdict.startswith("No labels: accuracy unknown; against model, onnxruntime, fp32 95.00 % of the decisions ")
    values = [
        replace(row, against_reference=replace(row.against_reference, decisions=None, cosine=cosine))
        for row, cosine in zip(rows[1:], (1.0, 0.95), strict=True)
    ]
    assert "cosine 0.950000, SNR 10.0 dB" in verdict_of([bare, *values], None)[1]


def test_a_gain_of_one_output_passes_nothing_where_no_label_judges_the_others():
    rng = np.random.default_rng(0)
    before = -rng.random(200)
    reference, _ = scored(before, ERROR)
    repaired, _ = scored(before / 2, ERROR, repaired=True, reference=before)
    assert verdict_of([reference, repaired], None)[0] == "PASS"
    tensor = compare_tensors(np.ones((4, 1)), np.ones((4, 1)))
    against = replace(repaired.against_unrepaired, outputs={"y": tensor, "z": tensor})
    status, verdict = verdict_of([reference, replace(repaired, against_unrepaired=against)], None)
    assert (status, "what it does to z no label judges" in verdict) == ("WARN", True)
