from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vsfix.graph_passes.noise_average.severity import Severity
from vsfix.pipeline.comparison.metric import Metric
from vsfix.pipeline.comparison.score_difference import compare_scores
from vsfix.pipeline.repair.label_judge import LabelScores
from vsfix.pipeline.repair.repair_report import RepairReport
from vsfix.pipeline.repair.verdict import judge

HEALTHY, UNSURE, FAR = Severity(0.3, 0.2, 0.4, 256), Severity(0.3, 0.1, 1.9, 64), Severity(1.3, 0.4, 2.5, 20)


def report(**changes) -> RepairReport:
    plain = RepairReport(
        method="none",
        method_reason="R is below its bound",
        data="64 samples of the data",
        samples=64,
        judged_on=64,
        batch_norms=(),
        prepared=(),
        removed=(),
        warnings=(),
        compared_on=64,
        fold_snr_db=None,
    )
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"severity": HEALTHY}, "PASS"),
        ({"severity": UNSURE}, "WARN"),
        ({"severity": HEALTHY, "severity_before": FAR}, "WARN"),  # the samples that judge say otherwise
        ({"severity": HEALTHY, "severity_before": HEALTHY}, "PASS"),
        ({"severity": HEALTHY, "warnings": ("read this",)}, "WARN"),
    ],
)
def test_a_file_that_stays_as_it_is_passes_where_r_leaves_no_question(changes, wanted):
    status, verdict = judge(report(**changes))
    assert status == wanted
    assert verdict == "Nothing repaired: R is below its bound."


def labels(before, after) -> LabelScores:
    return LabelScores(**vars(compare_scores(Metric("top1", "y", "labels"), np.array(before), np.array(after))))


def test_labels_that_are_too_few_make_no_pass():
    near = Severity(0.1, 0.05, 0.2, 256)
    repaired = report(method="match", severity=FAR, severity_before=FAR, severity_after=near)
    assert judge(repaired, labels(np.zeros(8), np.ones(8)))[0] == "PASS"
    for after in (np.ones(7), np.zeros(7)):
        status, verdict = judge(repaired, labels(1 - after, after))
        assert status == "WARN"
        assert "on 7 labelled samples, which are too few to tell whether it gained or lost" in verdict
    assert judge(report(severity=UNSURE), labels(np.ones(7), np.ones(7)))[0] == "WARN"
    assert judge(report(severity=UNSURE), labels(np.ones(8), np.ones(8)))[0] == "PASS"


def test_a_large_loss_on_labels_that_can_not_tell_it_from_chance_is_no_pass():
    near = Severity(0.1, 0.05, 0.2, 256)
    repaired = report(method="match", severity=FAR, severity_before=FAR, severity_after=near)
    for lost, wanted in ((5, "WARN"), (0, "PASS")):  # of 8, where McNemar's p of 5 is 0.06
        status, verdict = judge(repaired, labels(np.ones(8), (np.arange(8) >= lost).astype(float)))
        assert status == wanted
        assert ("too few to tell whether that is chance (p = 0.062)" in verdict) == (lost > 0)
    many = labels(np.ones(300), (np.arange(300) >= 3).astype(float))  # a hundredth, which may be chance
    assert judge(repaired, many)[0] == "PASS"
