from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from vsfix.pipeline.figure import mismatch_figure
from vsfix.pipeline.inspection import BatchNormRow
from vsfix.pipeline.repair_report import BatchNormOutcome


def outcome(before: float | None, after: float | None) -> BatchNormOutcome:
    row = BatchNormRow("bn", 16, "dropout:0.5", "direct", 1, 0.5, 0.5, before)
    return BatchNormOutcome(row, replace(row, mismatch=after), "paired", 0.5, None, True, "new", False, "no")


def test_the_figure_is_an_svg_that_takes_the_colour_of_the_page():
    svg = mismatch_figure([outcome(2.0, 1.01), outcome(3.0, 1.02)])
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "currentColor" in svg
    assert "repaired" in svg


def test_the_figure_is_the_same_every_time():
    outcomes = [outcome(2.0, 1.01)]
    assert mismatch_figure(outcomes) == mismatch_figure(outcomes)


@pytest.mark.parametrize("outcomes", [[], [outcome(None, None)], [outcome(250.0, 1.0)]])
def test_nothing_measured_and_huge_values_are_drawn_without_an_error(outcomes):
    ElementTree.fromstring(mismatch_figure(outcomes))
