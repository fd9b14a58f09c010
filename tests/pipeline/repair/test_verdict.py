from __future__ import annotations

from dataclasses import replace

import pytest

from vsfix.graph_passes.noise_average.severity import Severity
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
