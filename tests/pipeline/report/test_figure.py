from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import pytest

from vsfix.pipeline.comparison.accuracy import AccuracyRow
from vsfix.pipeline.comparison.error_budget import BudgetStep
from vsfix.pipeline.comparison.score_difference import Score
from vsfix.pipeline.inspection.noise_study import LayerRow
from vsfix.pipeline.report.accuracy_figure import accuracy_figure, accuracy_lines
from vsfix.pipeline.report.budget_figure import accuracy_waterfall, error_figure
from vsfix.pipeline.report.distance_figure import distance_figure
from vsfix.pipeline.report.figure import figure_svg, page_figure, spaced
from vsfix.pipeline.report.latency_figure import DRAWN, latency_figure, p50_p99
from vsfix.pipeline.report.sections import ErrorBudget, LatencySeries
from vsfix.pipeline.report.variance_ratio_figure import variance_ratio_figure

STEPS = (
    BudgetStep("export", "a.pt", "a.onnx", 129.8, 6e-7, 1.0, 0.75),
    BudgetStep("cast", "a.onnx", "b.onnx", 65.8, 8.7e-4, 0.9997, 0.7451),
    BudgetStep("noise floor", "b.onnx", "b.onnx", float("inf"), 0.0, None, None),
)


def words(svg: str) -> list[str]:
    """The texts of one figure."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def points(svg: str, marker: str) -> list[tuple[float, float]]:
    """Where the markers of a series stand, by the colour of that series."""
    groups = [element for element in ElementTree.fromstring(svg).iter("use") if marker in element.attrib["style"]]
    return [(float(use.attrib["x"]), float(use.attrib["y"])) for use in groups]


def share(value, low, high):
    """Top-1 with an interval."""
    return Score("top-1", value, low, high, 10000, 1, "%")


def test_a_figure_of_its_own_takes_the_colour_of_the_page_and_one_of_a_page_also_its_series():
    alone = figure_svg(lambda plots: plots[0].plot([1, 2], color="#c02942"))
    assert "currentColor" in alone
    assert "#c02942" in alone
    inline = page_figure(lambda axes: axes.plot([1, 2], color="#c02942"), "one", "a line", (4, 3))
    assert "var(--series-1)" in inline
    assert "#c02942" not in inline


def test_a_figure_of_a_page_loads_nothing_and_its_ids_are_its_own():
    first, second = (page_figure(lambda axes: axes.plot([1, 2], "o"), name, "", (4, 3)) for name in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert not ids[0] & ids[1]
    for svg, known in zip((first, second), ids, strict=True):
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
        assert {name for pair in used for name in pair if name} <= known
        assert "http" not in svg
        assert "<style" not in svg


def test_a_name_with_the_signs_of_formulas_and_markup_is_only_a_name():
    label = "$x^2$ <b>net</b> & \N{CJK UNIFIED IDEOGRAPH-4E2D}"
    svg = page_figure(lambda axes: axes.set_xlabel(label), "one", label, (4, 3))
    assert label in words(svg)
    assert ElementTree.fromstring(svg).attrib["aria-label"] == label


def test_the_figure_is_the_same_every_time():
    assert variance_ratio_figure([2.0], [1.01]) == variance_ratio_figure([2.0], [1.01])


@pytest.mark.parametrize(
    ("before", "after"), [([2.0, None, 3.0], [1.01, None, 1.02]), ([250.0], []), ([1.0] * 500, [])]
)
def test_each_measured_batch_norm_is_a_point_at_its_place(before, after):
    """The second way: the height of a point is linear in the logarithm, the place in the number."""
    wide = str(variance_ratio_figure(before, after)).split("</svg>")[0] + "</svg>"
    found = points(wide, "var(--series-1)")
    assert len(found) == (len([value for value in before if value]) if len(before) <= 60 else 0)
    if len(found) == 2:
        (left, high), (right, low) = found
        other = points(wide, "var(--series-2)")
        assert (right, other[1][0]) == (pytest.approx(other[1][0]), pytest.approx(right))
        assert left < right
        assert low < high < other[0][1]  # y grows downwards


def test_accuracy_has_a_line_for_each_method_by_its_images_and_a_level_for_the_rest():
    rows = (
        AccuracyRow("as trained", None, share(32, 31, 33)),
        AccuracyRow("exact", 1000, share(76, 75, 77)),
        AccuracyRow("exact", 32, share(70, 68, 72)),
    )
    lines = accuracy_lines(rows)
    assert {name: [row.images for row in line] for name, line in lines.items()} == {
        "as trained": [None],
        "exact": [32, 1000],
    }
    svg = accuracy_figure(rows)
    assert {"32", "1000", "top-1, %"} <= set(words(svg))
    (left, low), (right, high) = points(svg, "var(--series-2)")[-2:]
    assert left < right
    assert high < low


def test_without_a_number_of_images_there_is_no_accuracy_to_draw():
    assert accuracy_figure((AccuracyRow("as trained", None, share(30, 20, 40)),)) == ""
    assert accuracy_figure(()) == ""


def test_an_error_budget_says_each_step_and_its_decibels():
    found = words(error_figure(ErrorBudget("b.onnx", "a.pt", STEPS), "budget"))
    for step, text in (("export", "129.8 dB"), ("cast", "65.8 dB"), ("noise floor", "exact")):
        assert found.count(step) == 1
        assert found.count(text) == 1


@pytest.mark.parametrize("snr_db", [float("nan"), float("-inf"), -20.0, 400.0])
def test_an_error_beyond_every_axis_is_drawn_all_the_same(snr_db):
    steps = (BudgetStep("cast", "a", "b", snr_db, 1.0, None, None),)
    assert "cast" in words(error_figure(ErrorBudget("b", "a", steps), "budget"))


def test_the_waterfall_goes_from_the_reference_to_the_candidate_in_points():
    found = words(accuracy_waterfall(ErrorBudget("b.onnx", "a.pt", STEPS, share(75.07, 74, 76)), "fall"))
    for text in ("75.07 %", "\N{MINUS SIGN}0.07", "\N{MINUS SIGN}0.49", "74.51 %"):
        assert found.count(text) == 1
    assert "noise floor" not in found
    assert accuracy_waterfall(ErrorBudget("b.onnx", "a.pt", STEPS), "fall") == ""


def test_the_percentiles_are_those_of_the_sorted_runs():
    times = tuple(float(value) for value in range(100, -1, -1))
    assert p50_p99(LatencySeries("net", 1, times)) == (50.0, 99.0)


def test_many_runs_are_drawn_by_their_quantiles_and_long_names_shortened():
    series = LatencySeries("a" * 99 + "z", 8, tuple(1 + index / 5000 for index in range(5000)))
    svg = latency_figure([series])
    assert len(points(svg, "var(--series-2)")) == DRAWN
    (title,) = (word for word in words(svg) if "aaa" in word)
    assert len(title) < 60
    assert title.startswith("…")
    assert title.endswith("aaz, batch 8")


@pytest.mark.parametrize("times", [(0.0,), (2.0, 2.0), (0.001, 40.0)])
def test_latencies_of_any_spread_can_be_drawn(times):
    assert "net, batch 1" in words(latency_figure([LatencySeries("net", 1, times)]))


def test_ticks_of_a_logarithmic_axis_stand_apart():
    assert spaced([1, 1.01, 2, 2.01, 1000], 1, 10) == [1, 2]


def test_an_error_has_its_own_axis_and_what_lowers_it_is_drawn_as_better():
    score = Score("mean squared error", 0.5, 0.45, 0.55, 100, is_loss=True)
    steps = (BudgetStep("repair", "a", "b", 20.0, 0.1, None, 0.2), BudgetStep("cast", "b", "c", 60.0, 1e-3, None, 0.21))
    svg = accuracy_waterfall(ErrorBudget("c.onnx", "a.onnx", steps, score), "fall")
    for text in ("0.5", "\N{MINUS SIGN}0.3", "+0.01", "0.21", "mean squared error"):
        assert text in words(svg)
    better, worse = (svg.index(f"fill: var(--series-{number})") for number in (2, 1))
    assert better < worse
    rows = [AccuracyRow("exact", 32, score), AccuracyRow("exact", 64, Score("R2", -math.inf, -math.inf, math.inf, 9))]
    assert "mean squared error" in words(accuracy_figure(rows))


def test_a_name_that_holds_what_xml_may_not_is_drawn_all_the_same():
    name = "a\x1b[31m\x00\x0b.onnx"
    figure = latency_figure([LatencySeries(name, 1, (1.0, 2.0))])
    assert "a\ufffd[31m\ufffd\ufffd.onnx, batch 1" in words(figure)


def test_two_methods_with_as_many_images_do_not_hide_each_other():
    rows = [AccuracyRow(name, images, share(90, 85, 95)) for name in ("paired", "exact") for images in (32, 1000)]
    svg = accuracy_figure(rows)
    (one, _), (two, _) = (points(svg, f"var(--series-{number})")[-2:] for number in (1, 2))
    assert two[0] - one[0] > 6
    assert one[1] == two[1]


def test_each_layer_is_a_point_before_and_after_and_nothing_is_drawn_of_none():
    layers = [LayerRow("a", 1.0, 0.1), LayerRow("b", 0.5, 0.0), LayerRow("c", 0.2, 0.2)]
    wide, narrow = re.findall("<svg.*?</svg>", distance_figure(layers), re.S)
    for svg in (wide, narrow):
        before, after = (points(svg, f"var(--series-{number})") for number in (1, 2))
        assert [x for x, _ in before] == [x for x, _ in after]
        assert after[0][1] > before[0][1], "nearer stands lower"
        assert after[2][1] == before[2][1]
    assert distance_figure([]) == ""


@pytest.mark.parametrize("values", [(0.0, 0.0), (1e9, 1e-9), (0.3, 0.31)])
def test_distances_of_any_spread_have_ticks(values):
    svg = re.findall("<svg.*?</svg>", distance_figure([LayerRow("a", *values)]), re.S)[0]
    assert len(words(svg)) > 3


DRAW = """
from vsfix.pipeline.report.figure import figure_svg
print(figure_svg(lambda plots: plots[0].set_title('a title')))
"""


def test_a_file_in_the_current_folder_changes_no_figure(tmp_path):
    def drawn() -> str:
        command = [sys.executable, "-I", "-c", DRAW]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120).stdout

    figure = drawn()
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 300\naxes.facecolor: red\n")
    assert drawn() == figure


def test_the_settings_of_a_program_are_neither_used_nor_changed():
    before = mpl.rcParams["font.size"]
    with mpl.rc_context({"font.size": before + 1}):
        seen: list[float] = []
        figure_svg(lambda plots: seen.append(mpl.rcParams["font.size"]))
        assert seen == [before]
        assert mpl.rcParams["font.size"] == before + 1
    assert mpl.rcParams["text.color"] == "black"
