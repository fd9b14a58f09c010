from __future__ import annotations

import math
from dataclasses import replace

import pytest

from vsfix.pipeline.reproduction.experiments import Cell, Experiment
from vsfix.pipeline.reproduction.summary import Spread, markdown_table, summarize
from vsfix.pipeline.reproduction.trial import TrialResult
from vsfix.trainers.training.shift_log import BatchNormShift

CELLS = (Cell(("net", "none"), "net", ("none",)), Cell(("net", "half"), "net", ("a=dropout:0.5",), "68.55 %"))
EXPERIMENT = Experiment("table", "A claim", ("network", "noise"), CELLS, repaired=True)


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
    table = markdown_table(summarize(replace(EXPERIMENT, repaired=False), runs))
    assert table.splitlines()[0] == "| network | noise | runs | top-1 % | mismatch | worst mismatch | paper |"


def test_a_cell_without_a_finished_run_shows_none():
    summary = summarize(EXPERIMENT, {CELLS[0]: [result(0.9, {"x": 1.0})]})
    assert markdown_table(summary).splitlines()[3] == "| net | half | 0 | - | - | - | 68.55 % |"
    assert summary.to_dict()["rows"][1]["top-1 %"] is None
