from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy import stats

from vsfix.pipeline.reproduction.experiments import Cell, Experiment
from vsfix.pipeline.reproduction.summary import Difference, Spread, markdown_table, summarize
from vsfix.pipeline.reproduction.trial import AS_TRAINED, OWN, REPAIRED, TrialResult
from vsfix.trainers.training.shift_log import BatchNormShift

CELLS = (Cell(("net", "none"), "net", ("none",)), Cell(("net", "half"), "net", ("a=dropout:0.5",), "68.55 %"))
EXPERIMENT = Experiment("table", "A claim", ("network", "noise"), CELLS, repairs=("re-estimated", "paired"))


def result(accuracy: float, ratios: dict[str, float], behind=(), repairs=None) -> TrialResult:
    """A run with these shift ratios after its second epoch, and others after its first."""
    shift = tuple(
        BatchNormShift(epoch, name, ratio**epoch / 1, max(ratio**epoch, ratio**-epoch))
        for epoch in (1, 2)
        for name, ratio in ratios.items()
    )
    return TrialResult(accuracy, 1.0, 2.0, 3.0, shift, behind, repairs)


def test_mean_and_deviation_are_those_of_a_sample():
    spread = Spread.of([80.0, 82.0, 87.0])
    assert (spread.mean, spread.runs) == (83.0, 3)
    assert spread.deviation == pytest.approx(math.sqrt((9 + 1 + 16) / 2), rel=1e-12)
    assert spread.text(2) == "83.00 ± 3.61"
    assert Spread.of([80.0]).text(1) == "80.0"
    assert Spread.of([]) is None


def test_a_difference_has_student_s_interval():
    values = [0.5, -0.25, 1.0, 0.75, 2.0]
    found = Difference.of(values)
    expected = stats.t.interval(0.95, 4, loc=0.8, scale=stats.sem(values))
    assert found.mean == pytest.approx(0.8, rel=1e-12)
    assert found.runs == 5
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-9)
    assert found.text(2) == "+0.80 (-0.22 to +1.82)"
    assert Difference.of([-0.5]).text(2) == "-0.50"
    assert Difference.of([-1e-14, -1e-14]).text(2) == "+0.00 (+0.00 to +0.00)"
    assert Difference.of([]) is None


def test_rows_are_compared_seed_by_seed():
    other = Cell(("other", "none"), "other", ("none",))
    compared = replace(
        EXPERIMENT,
        cells=(*CELLS, other),
        repairs=(REPAIRED,),
        compared=((AS_TRAINED, "none"), (REPAIRED, "none"), (REPAIRED, OWN)),
    )
    # The second seed has no run without noise: its pair is left out, not shifted.
    none = [result(0.75, {"x": 1.0}), None, result(0.5, {"x": 1.0})]
    half = [result(share, {"x": 0.5}, ("x",), {REPAIRED: 0.875, OWN: share}) for share in (0.5, 0.125, 0.5)]
    rows = summarize(compared, {CELLS[0]: none, CELLS[1]: half, other: [result(0.1, {"x": 1.0})]}).rows
    assert [row.runs for row in rows] == [2, 3, 1]
    assert rows[1].numbers["minus none"].mean == pytest.approx(-12.5, rel=1e-12)
    assert rows[1].numbers["repaired minus none"].mean == pytest.approx(25, rel=1e-12)
    assert rows[1].numbers["repaired minus none"].runs == 2
    assert rows[1].numbers["repaired minus re-estimated"].mean == pytest.approx(50, rel=1e-12)
    assert rows[0].numbers["minus none"] is None
    assert rows[2].numbers["minus none"] is None  # no other network's
    heads, *_ = markdown_table(summarize(compared, {CELLS[0]: none, CELLS[1]: half})).splitlines()
    assert heads == (
        "| network | noise | runs | top-1 % | repaired, own images, top-1 % | minus none |"
        " repaired minus none | repaired minus re-estimated | mismatch | paper |"
    )


def test_a_row_holds_what_its_runs_came_to():
    runs = [
        result(0.5, {"x": 0.5, "y": 0.8, "z": 1.25}, ("x", "y")),
        result(0.7, {"x": 0.5, "y": 0.8, "z": 1.25}, ("x", "y")),
    ]
    row = summarize(EXPERIMENT, {CELLS[1]: runs}).rows[1]
    assert row.runs == 2
    assert row.numbers["top-1 %"].text(2) == "60.00 ± 14.14"
    # Of the last epoch alone: 0.25 and 0.64 behind the noise; 4, 1.5625 and 1.5625 of all.
    assert row.numbers["shift ratio behind the first noise"].mean == pytest.approx(0.25, rel=1e-12)
    assert row.numbers["behind all noise"].mean == pytest.approx(math.sqrt(0.25 * 0.64), rel=1e-12)
    assert row.numbers["mismatch"].mean == pytest.approx((4 * 1.5625**2) ** (1 / 3), rel=1e-12)
    assert row.numbers["worst mismatch"].mean == pytest.approx(4, rel=1e-12)


def test_a_table_shows_what_was_measured_and_the_paper_s_number():
    repairs = {"re-estimated": 0.75, "paired": 0.8}
    summary = summarize(
        EXPERIMENT, {CELLS[0]: [result(0.9, {"x": 1.0})], CELLS[1]: [result(0.5, {"x": 0.5}, ("x",), repairs)]}
    )
    lines = markdown_table(summary).splitlines()
    assert lines[0].startswith(
        "| network | noise | runs | top-1 % | re-estimated, 1000 images, top-1 % | paired, 32 images"
    )
    assert lines[2] == "| net | none | 1 | 90.00 | - | - | - | - | 1.000 | 1.000 | not available |"
    assert lines[3] == "| net | half | 1 | 50.00 | 75.00 | 80.00 | 0.2500 | 0.2500 | 4.000 | 4.000 | 68.55 % |"


def test_repairs_that_another_table_asked_for_are_not_shown():
    runs = {CELLS[0]: [result(0.9, {"x": 1.0}, (), {"re-estimated": 0.9, "paired": 0.9})]}
    table = markdown_table(summarize(replace(EXPERIMENT, repairs=()), runs))
    assert table.splitlines()[0] == "| network | noise | runs | top-1 % | mismatch | worst mismatch | paper |"


def test_a_cell_without_a_finished_run_shows_none():
    summary = summarize(EXPERIMENT, {CELLS[0]: [result(0.9, {"x": 1.0})]})
    assert markdown_table(summary).splitlines()[3] == "| net | half | 0 | - | - | - | 68.55 % |"
    assert summary.to_dict()["rows"][1]["top-1 %"] is None
