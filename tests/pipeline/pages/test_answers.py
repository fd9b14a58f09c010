from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vsfix.graph_passes.noise_average.severity import Severity
from vsfix.graph_passes.noise_average.stored_statistics import StoredAgainstNoisy
from vsfix.pipeline.comparison.accuracy import TOP_1, AccuracyRow
from vsfix.pipeline.comparison.metric import Metric
from vsfix.pipeline.comparison.score_difference import Score, ScoreDifference, score_of
from vsfix.pipeline.inspection.batch_norm_row import BatchNormRow
from vsfix.pipeline.inspection.inspection import Inspection
from vsfix.pipeline.inspection.noise_study import LayerRow
from vsfix.pipeline.pages.answers import find_answers
from vsfix.pipeline.repair.candidates import CandidateRow
from vsfix.pipeline.repair.repair_report import BatchNormOutcome, RepairReport
from vsfix.pipeline.report.number_text import count
from vsfix.pipeline.report.sections import BenchmarkRow, LatencySeries, Report

EMPTY = Report("Title", "PASS", "Verdict.")
DAMAGE, PLACE, REPAIR, CERTAINTY, COST = (
    "Was the model damaged?",
    "Where?",
    "Was it repaired?",
    "How sure is that?",
    "What does it cost at inference?",
)


def row(name: str, mismatch: float | None, noise: str = "dropout:0.5", distance: str = "direct") -> BatchNormRow:
    source = "drop" if noise else ""
    return BatchNormRow(name, 8, noise, distance, 1, None, mismatch and 1 / mismatch, mismatch, source=source)


def looked_at(*rows: BatchNormRow) -> Report:
    return replace(EMPTY, inspection=Inspection(rows, (), 500, ()))


def repaired(*outcomes: BatchNormOutcome) -> Report:
    report = RepairReport("paired", "why", "32 samples of the data", 32, 256, outcomes, (), ("drop",), (), 1, None)
    return replace(EMPTY, repair=report)


def outcome(before: float, after: float, interval: tuple[float, float] | None, done: bool = True) -> BatchNormOutcome:
    old = row("bn", before)
    action = "repaired" if done else "kept: the data shows no shift"
    return BatchNormOutcome(old, replace(old, mismatch=after), "paired", 0.5, interval, done, action, True, "folded")


def answers(report: Report) -> dict[str, str]:
    return {answer.question: answer.text for answer in find_answers(report)}


def test_what_no_section_tells_is_not_asked():
    assert answers(EMPTY) == {}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((row("a", 3.1), row("b", 1.0)), "Yes. The noise of training leaves 1 of 2 BatchNorms"),
        ((row("a", 1.02),), "No. Every stored variance is within a tenth"),
        ((row("a", 4.0, ""), row("b", 1.0)), "Not by noise. The stored variance of 1 BatchNorm that no noise"),
        ((row("a", None),), "Not measured"),
        ((row("a", 1.02), row("b", None)), "Not as far as is known: of 2 BatchNorms, 1 are within a tenth"),
    ],
)
def test_damage_is_told_from_health_and_from_foreign_data(rows, words):
    assert answers(looked_at(*rows))[DAMAGE].startswith(words)


def test_what_few_samples_show_is_damage_only_where_a_repair_was_sure_of_it():
    few = replace(looked_at(row("a", 1.2)), inspection=Inspection((row("a", 1.2),), (), 32, ()))
    assert answers(few)[DAMAGE].startswith(
        "Not clear. The worst stored variance that noise reaches is off by a factor of 1.20"
    )
    kept = repaired(outcome(1.2, 1.2, (0.9, 1.1), False)).repair
    done = repaired(outcome(1.2, 1.0, (0.8, 0.9))).repair
    words = [
        answers(replace(EMPTY, repair=replace(found, judged_on=32)))[DAMAGE].split(".")[0] for found in (kept, done)
    ]
    assert words == ["Not clear", "Yes"]


@pytest.mark.parametrize(
    ("distance", "words"),
    [
        ("direct", "directly downstream of the noise layer 'drop'"),
        ("linear", "downstream of a linear layer and the noise layer 'drop'"),
        ("downstream", "downstream of the noise layer 'drop'"),
    ],
)
def test_the_worst_batch_norm_is_named_with_its_noise(distance, words):
    told = answers(looked_at(row("mild", 2.0), row("worst", 3.1, distance=distance)))
    assert "'worst'" in told[PLACE]
    assert words in told[PLACE]
    assert told[REPAIR].startswith("Not yet")


def test_a_repair_says_what_is_left_and_how_many_intervals_exclude_no_shift():
    told = answers(
        repaired(outcome(3.0, 1.2, (0.3, 0.4)), outcome(2.0, 1.05, (0.9, 1.1)), outcome(1.0, 1.0, None, False))
    )
    assert told[REPAIR] == (
        "Yes: 2 of 3 BatchNorms, by the method paired; the worst stored variance among them is now off by a factor of 1.20."
    )
    assert "Of 2 estimated shifts, 1 have a 95 % interval without 1" in told[CERTAINTY]
    assert "Folded away: 3 of 3 BatchNorms; removed: 1 noise layer or identity." in told[COST]
    assert "not timed" in told[COST]


def test_statistics_that_are_farther_off_than_before_are_no_success():
    assert answers(repaired(outcome(1.15, 3.05, (0.3, 0.4))))[REPAIR].startswith(
        "Changed, and farther off than before on this data: 1"
    )
    assert answers(repaired(outcome(1.05, 1.02, (0.9, 0.99))))[REPAIR].startswith("Yes: 1 of 1")


def test_a_repair_that_changed_nothing_or_was_refused_is_no_repair():
    kept = repaired(outcome(1.0, 1.0, (0.9, 1.1), False))
    assert answers(kept)[REPAIR].startswith("No: the evidence supports no change")
    assert answers(replace(repaired(outcome(3.0, 1.2, None)), status="FAIL"))[REPAIR].startswith("No: the repair")


@pytest.mark.parametrize(("low", "words"), [(0.5, "do not overlap"), (0.3, "overlap")])
def test_intervals_of_the_accuracies_are_compared_and_their_pairs_are_told(low, words):
    trained, fixed = (
        AccuracyRow("as trained", None, share(30, 20, 40)),
        AccuracyRow("repaired", 32, share(60, 100 * low, 70)),
    )
    told = answers(replace(EMPTY, accuracies=(trained, fixed)))[CERTAINTY]
    assert told.endswith(f"repaired, {words}.")
    told = answers(replace(EMPTY, accuracies=(trained, replace(fixed, p_value=0.01))))[CERTAINTY]
    assert told.endswith(f"repaired, {words}; McNemar's test on the same samples: p = 0.01.")


def test_what_was_timed_is_told_or_where_it_stands():
    series = LatencySeries("net.onnx", 1, (1.0, 2.0, 9.0))
    assert answers(replace(EMPTY, latencies=(series,)))[COST] == "Median latency: net.onnx 2.00 ms (batch 1)."
    assert "A table below" in answers(replace(EMPTY, latencies=(series,) * 9))[COST]
    assert "A table below" in answers(replace(EMPTY, benchmark=(BenchmarkRow("m", "b", "fp32", p50_ms=1.0),)))[COST]


def test_a_ratio_is_told_with_its_interval():
    series = LatencySeries("repaired.onnx", 1, (2.0,), ratio=0.98, ratio_interval=(0.97, 1.01))
    told = answers(replace(EMPTY, latencies=(series,)))[COST]
    assert "0.98 times its baseline, 95 % interval 0.97 – 1.01, which holds 1)" in told
    told = answers(replace(EMPTY, latencies=(replace(series, ratio_interval=(0.97, 0.99)),)))[COST]
    assert "95 % interval 0.97 – 0.99)" in told


def test_of_many_latencies_the_ratios_to_their_baselines_are_told():
    baseline = LatencySeries("net.onnx", 1, (2.0,), ratio=1.0)
    others = [LatencySeries("repaired.onnx", 1, (2.0,), ratio=x, ratio_interval=(x, x + 0.1)) for x in (0.97, 1.02)]
    found = answers(replace(EMPTY, latencies=(*(baseline,) * 4, *others)))[COST]
    assert "0.97 to 1.02 in 2 measurements" in found


def test_a_repaired_file_in_a_benchmark_is_named_beside_the_repair_that_was_tried():
    trial = replace(repaired(outcome(3.0, 1.0, (0.3, 0.4))), is_trial=True)
    row = repaired_row(75, 43.0, 1e-12)
    assert answers(trial)[REPAIR].startswith("Tried for this page, without writing a file")
    found = answers(replace(trial, benchmark=(replace(row, repaired=False), row)))[REPAIR]
    assert found.startswith(
        "Yes, in repaired.onnx: top-1 75.00 % (onnxruntime, fp32), +43.00 percentage points by its repair, p < 1e-9. "
        "Tried anew for"
    )


def repaired_row(right: int, gain: float, p_value: float) -> BenchmarkRow:
    """The row of a repaired file, right on so many of 100 samples."""
    worth = ScoreDifference("top-1", "y", right - gain, right, gain, (0, 0), p_value, 100, "percentage points", 1, 2)
    return BenchmarkRow("repaired.onnx", "onnxruntime", "fp32", top1(right, 100), repaired=True, repair_gain=worth)


def top1(right: int, total: int) -> Score:
    """Right on so many samples."""
    return score_of(TOP_1, (np.arange(total) < right).astype(float))


def share(value: float, low: float, high: float) -> Score:
    """Top-1 with an interval."""
    return Score("top-1", value, low, high, 500, 1, "%")


@pytest.mark.parametrize(
    ("gain", "p_value", "words"),
    [
        (43.0, 1e-6, "Yes, in repaired.onnx"),
        (1.0, 0.7, "Its statistics are, in repaired.onnx"),
        (-20.0, 1e-6, "No: accuracy was lost in repaired.onnx"),
    ],
)
def test_a_file_is_called_repaired_where_it_gained_by_more_than_chance(gain, p_value, words):
    report = replace(EMPTY, benchmark=(repaired_row(75, gain, p_value),))
    assert answers(report)[REPAIR].startswith(words)
    cast = replace(repaired_row(75, gain, p_value), repair_gain=None)
    assert REPAIR not in answers(replace(EMPTY, benchmark=(cast,)))


def accuracies(*rights: tuple[int | None, int]) -> tuple[AccuracyRow, ...]:
    """By number of calibration images, right on so many of 100 samples."""
    return tuple(AccuracyRow("exact", images, top1(right, 100)) for images, right in rights)


@pytest.mark.parametrize(
    ("reached", "words"),
    [
        (75, "That is all that the estimate on most images (exact, 1 000 images: 74.00 %) brings back"),
        (53, "That is 50 % of the percentage points that the estimate on most images"),
    ],
)
def test_what_a_repair_recovers_is_held_against_the_estimate_on_most_images(reached, words):
    found = accuracies((None, 32), (32, reached), (1000, 74))
    assert words in answers(replace(repaired(outcome(3.0, 1.2, None)), accuracies=found))[REPAIR]
    file = replace(EMPTY, benchmark=(repaired_row(reached, reached - 32.0, 1e-6),), accuracies=found)
    assert words in answers(file)[REPAIR]


def test_where_no_other_estimate_was_made_that_is_said():
    report = replace(repaired(outcome(3.0, 1.2, None)), accuracies=accuracies((None, 32), (32, 75)))
    assert answers(report)[REPAIR].endswith("this page does not tell: it holds no other estimate.")


def test_accuracies_of_another_network_say_nothing_of_what_a_file_recovers():
    report = replace(EMPTY, benchmark=(repaired_row(75, 43.0, 1e-6),), accuracies=accuracies((None, 60), (1000, 90)))
    assert answers(report)[REPAIR].endswith("p = 1e-06.")


def test_a_repair_that_reaches_no_more_is_not_said_to_have_the_right_statistics():
    report = replace(repaired(outcome(3.0, 1.2, None)), accuracies=accuracies((None, 75), (32, 74)))
    assert answers(report)[DAMAGE].endswith("Top-1 is 75.0 %, and the repair from most images reaches no better.")


def test_a_healthy_network_on_few_samples_is_not_called_foreign_data():
    few = Inspection((row("a", 1.2, ""), row("b", 1.1, "")), (), 32, ())
    found = answers(replace(EMPTY, inspection=few))[DAMAGE]
    assert found.startswith("No, as far as 32 samples tell: the worst stored variance is off by a factor of 1.20")
    many = replace(few, samples=500)
    assert answers(replace(EMPTY, inspection=many))[DAMAGE].startswith("Not by noise.")


def test_the_certainty_is_that_of_the_repair_that_was_made_and_not_of_the_luckiest():
    def accuracy(name: str, images: int | None, right: int, p_value: float | None = None) -> AccuracyRow:
        return AccuracyRow(name, images, top1(right, 500), p_value)

    rows = (accuracy("as trained", None, 385), accuracy("paired", 32, 400, 0.04), accuracy("exact", 32, 470, 1e-8))
    found = answers(replace(EMPTY, accuracies=rows))[CERTAINTY]
    assert "p = 0.04" in found
    assert "76.3 – 83.3 % repaired, overlap" in found


def test_a_trial_says_that_no_file_is_repaired():
    trial = replace(repaired(outcome(2.0, 1.0, (0.4, 0.6))), is_trial=True)
    assert answers(trial)[REPAIR].endswith("No file of this page is repaired: the command vsfix optimize writes one.")


def test_ratios_that_hold_1_are_counted():
    times = tuple(
        LatencySeries(str(i), 1, (1.0,), 300, r, (r - 0.02, r + 0.02))
        for i, r in enumerate((0.99, 1.0, 1.1, 1.01, 0.9))
    )
    found = answers(replace(repaired(outcome(2.0, 1.0, (0.4, 0.6))), latencies=times))[COST]
    assert "0.90 to 1.10 in 5 measurements; 3 of their 95 % intervals hold 1, which is no difference" in found


def test_the_damage_is_told_by_the_repair_from_most_images_and_not_by_the_luckiest():
    found = accuracies((None, 75), (32, 94), (1297, 93))
    report = replace(repaired(outcome(3.0, 1.2, None)), accuracies=found)
    assert answers(report)[DAMAGE].endswith(f"As trained, top-1 is 75.0 %; {count(1297)} images bring it to 93.0 %.")


FAR, NEAR = Severity(9.0, 7.0, 11.0, 256, 0.35), Severity(0.1, 0.05, 0.2, 256, 0.01)


def averaged(before: Severity, after: Severity | None, method: str = "match") -> Report:
    """The report of a repair whose R is known; nothing is written where there is no R after it."""
    found = repaired(outcome(3.0, 1.0, None, after is not None)).repair
    assert found is not None
    rows = (
        CandidateRow("as trained", before.ratio, 0.0, 0.0, 0.0, 1.0, before.changed),
        CandidateRow("match", 0.1, -8.9, -11.0, -7.0, 0.0001, 0.01),
    )
    report = replace(
        found,
        method=method,
        severity=before,
        severity_before=before,
        severity_after=after,
        judges=85,
        candidates=rows,
        layers=(LayerRow("bn", 1.5, 0.2), LayerRow("fc", 0.7, 0.01)) if after is not None else (),
    )
    return replace(EMPTY, repair=report)


def test_the_answers_of_a_repair_follow_its_distance_to_the_averaged_network():
    told = answers(averaged(FAR, NEAR))
    assert told[DAMAGE].startswith("Yes. R = 9.00 (7.00 to 11.00, 256 samples)")
    assert told[PLACE].startswith("What 'bn' gives, downstream of the noise layer 'drop' (dropout:0.5), is farthest")
    assert told[REPAIR] == "Yes: R 9.00 -> 0.10, by the method match; decisions that differ: 35.0 % -> 1.0 %."
    assert "R changed by \N{MINUS SIGN}8.90 (95 % interval" in told[CERTAINTY]
    assert answers(averaged(NEAR, FAR))[REPAIR].startswith("Changed, and farther from the noise-averaged network")


def test_a_healthy_network_is_not_called_damaged_for_its_variances():
    told = answers(averaged(NEAR, None, "none"))
    assert told[DAMAGE].startswith("No. R = 0.10")
    assert "by a factor of 3.00), and that moves the outputs no farther." in told[DAMAGE]
    assert PLACE not in told
    assert told[REPAIR] == "There was nothing to repair, and nothing was changed."
    assert answers(averaged(FAR, None, "none"))[REPAIR] == "No: why."


def test_an_inspection_answers_by_the_distance_and_by_statistics_that_noise_does_not_explain():
    found = Inspection((row("a", 3.0),), (), 500, (), severity=NEAR)
    told = answers(replace(EMPTY, inspection=found))
    assert told[DAMAGE].startswith("No. R = 0.10")
    assert told[REPAIR] == "There is nothing to repair."
    assert told[CERTAINTY].startswith("R rests on 256 samples; its 95 % interval is 0.05 – 0.20.")
    assert answers(replace(EMPTY, inspection=replace(found, severity=FAR)))[REPAIR].startswith("Not yet")
    stale = replace(found, stored=(StoredAgainstNoisy("a", 8.0, 0.1),))
    told = answers(replace(EMPTY, inspection=stale))
    assert told[DAMAGE].startswith(
        "Yes, or the data is not that of the training. The noise is not the only fault: BatchNorm 'a' stores"
    )
    assert told[REPAIR].startswith("Not yet")


def test_a_second_level_of_accuracy_tells_what_was_lost():
    level = AccuracyRow("mean of 16 noisy passes", None, share(96, 94, 98))
    report = replace(averaged(FAR, NEAR), accuracies=(*accuracies((None, 75), (32, 94)), level))
    assert answers(report)[DAMAGE].endswith("As trained, top-1 is 75.0 %; mean of 16 noisy passes: 96.0 %.")


def errors(*levels: tuple[int | None, float]) -> tuple[AccuracyRow, ...]:
    """By number of calibration images, with such a mean squared error of 100 samples."""
    metric, spread = Metric("mse", "y", "labels"), np.linspace(-0.01, 0.01, 100)
    return tuple(AccuracyRow("match", images, score_of(metric, -level + spread)) for images, level in levels)


def test_an_error_that_falls_is_a_repair_and_one_that_rises_is_none():
    report = replace(repaired(outcome(3.0, 1.2, None)), accuracies=errors((None, 0.5), (32, 0.35), (1000, 0.2)))
    told = answers(report)
    assert told[DAMAGE].endswith(f"As trained, mean squared error is 0.5; {count(1000)} images bring it to 0.2.")
    assert "That is 50 % of what the estimate on most images" in told[REPAIR]
    assert "The 95 % intervals of mean squared error, 0.4988 – 0.5012 as trained" in told[CERTAINTY]
    assert "do not overlap" in told[CERTAINTY]
    worse = answers(replace(report, accuracies=errors((None, 0.2), (32, 0.5))))
    assert worse[DAMAGE].endswith("Mean squared error is 0.2, and the repair from most images reaches no better.")
    worth = ScoreDifference("mean squared error", "y", 0.2, 0.5, -0.3, (-0.4, -0.2), 1e-6, 100, is_loss=True)
    row = BenchmarkRow("r.onnx", "onnxruntime", "fp32", errors((1, 0.5))[0].score, repaired=True, repair_gain=worth)
    said = answers(replace(EMPTY, benchmark=(row,)))[REPAIR]
    assert said == (
        "No: it is worse in r.onnx: mean squared error 0.5 (onnxruntime, fp32), 0.3 higher by its repair, p = 1e-06."
    )


def test_an_estimate_that_destroys_is_not_what_a_repair_is_held_against():
    report = replace(repaired(outcome(3.0, 1.2, None)), accuracies=errors((None, 0.5), (32, 0.2), (1000, 2.0)))
    told = answers(report)
    assert told[DAMAGE].endswith(
        f"As trained, mean squared error is 0.5; match brings it to 0.2, and match on {count(1000)} images to 2."
    )
    assert "images: 2) is no better than as trained." in told[REPAIR]
