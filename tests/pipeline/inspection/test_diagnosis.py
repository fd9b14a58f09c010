from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vsfix.graph_passes.noise_average.severity import Severity
from vsfix.graph_passes.noise_average.stored_statistics import StoredAgainstNoisy
from vsfix.graph_passes.noise_inference.residuals import Residual
from vsfix.pipeline.inspection.batch_norm_row import BatchNormRow
from vsfix.pipeline.inspection.diagnosis import is_within_chance, judge_inspection, shifted_rows
from vsfix.pipeline.inspection.fault import Fault, FaultKind
from vsfix.pipeline.inspection.inspection import Inspection


def row(name: str, noise: str = "", predicted: float | None = None, mismatch: float | None = None) -> BatchNormRow:
    distance = "direct" if noise else ""
    return BatchNormRow(name, 8, noise, distance, int(bool(noise)), predicted, None, mismatch, source=noise and "drop")


def inspection(*rows: BatchNormRow, samples: int = 0, warnings: tuple[str, ...] = ()) -> Inspection:
    return Inspection(rows, (), samples, warnings)


def test_damage_is_named_with_its_worst_batch_norm():
    found = inspection(
        row("a"),
        row("b", "dropout:0.5", 0.5, 1.9),
        row("c", "dropout:0.5", None, 3.14),
        row("d", "uout:0.1", 1.0, 1.01),
        samples=500,
    )
    status, verdict = judge_inspection(found)
    assert status == "WARN"
    assert "noise reaches 3 of 4 BatchNorms, and 2 store a variance" in verdict
    assert "the worst, 'c', by a factor of 3.14 (measured on 500 samples)" in verdict


def test_without_data_the_prediction_stands_for_the_measurement():
    status, verdict = judge_inspection(inspection(row("a", "dropout:0.5", 0.25)))
    assert status == "WARN"
    assert "by a factor of 4.00 (predicted from what is stored)" in verdict


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((row("a"), row("b")), "no noise that the file shows reaches any of its 2 BatchNorms"),
        (
            (row("a", "uout:0.1", 1.0, 1.04),),
            "noise reaches 1 of 1 BatchNorms, and their stored variances are off by a factor of 1.04",
        ),
    ],
)
def test_where_nothing_is_shifted_there_is_nothing_to_repair(rows, words):
    status, verdict = judge_inspection(inspection(*rows, samples=500))
    assert status == "PASS"
    assert verdict.startswith("Nothing to repair: ")
    assert words in verdict
    assert judge_inspection(inspection(*rows, samples=500, warnings=("read",)))[0] == "WARN"


@pytest.mark.parametrize(("samples", "words"), [(1, "Not clear"), (32, "Not clear"), (500, "Damaged")])
def test_what_so_few_samples_show_of_a_healthy_batch_norm_too_is_not_called_damage(samples, words):
    found = inspection(row("a", "dropout:0.5", None, 1.2), samples=samples)
    status, verdict = judge_inspection(found)
    assert (status, verdict.startswith(words)) == ("WARN", True)


@pytest.mark.parametrize("samples", [2, 3, 4, 6, 8, 32, 100, 500])
def test_a_healthy_batch_norm_is_within_chance_and_a_halved_variance_is_not(samples):
    rng = np.random.default_rng(samples)
    real = rng.standard_t(8, size=(200, samples, 64)).var(axis=1) / (8 / 6)  # 200 layers of 64 channels, heavy tails
    ratios = np.exp(np.abs(np.log(real)).mean(axis=1))
    assert all(is_within_chance(float(ratio), samples) for ratio in ratios)
    assert is_within_chance(2.0, samples) == (samples <= 8)
    assert not is_within_chance(1.01, 0)


def test_a_few_predictions_do_not_speak_for_what_only_data_tells():
    status, verdict = judge_inspection(inspection(row("a", "uout:0.1", 0.99), row("b", "uout:0.1"), row("c")))
    assert status == "WARN"
    assert "1 of them store a variance that is off by a factor of 1.01 at most (predicted" in verdict
    assert verdict.endswith("only data tells (--data).")


def test_noise_whose_shift_is_not_known_is_not_called_harmless():
    status, verdict = judge_inspection(inspection(row("a", "dropout:0.5")))
    assert status == "WARN"
    assert "only data tells" in verdict


def test_a_variance_that_is_off_without_noise_is_not_laid_to_noise():
    rows = (
        row("other data", "", None, 5.0),
        row("edge", "dropout:0.1", None, 1.1),
        row("fine", "dropout:0.1", None, 1.09),
    )
    assert [found.name for found in shifted_rows(rows)] == ["edge"]


OFF = inspection(row("a", "dropout:0.5", 0.5, 1.9), samples=500)


def test_a_network_near_its_average_passes_although_its_variances_differ():
    status, verdict = judge_inspection(replace(OFF, severity=Severity(0.3, 0.2, 0.4, 256)))
    assert status == "PASS"
    assert verdict.startswith("Nothing to repair: R = 0.30 (0.20 to 0.40, 256 samples)")
    assert verdict.endswith("(the worst, 'a', by a factor of 1.90), and that moves the outputs no farther.")
    warned = replace(OFF, severity=Severity(0.3, 0.2, 0.4, 256), warnings=("read",))
    assert judge_inspection(warned)[0] == "WARN"


@pytest.mark.parametrize("found", [OFF, inspection(samples=500), inspection(row("a", "dropout:0.5", 0.99, 1.01))])
def test_a_network_far_from_its_average_is_damaged_whatever_its_variances(found):
    status, verdict = judge_inspection(replace(found, severity=Severity(9.0, 7.0, 11.0, 256, 0.35)))
    assert status == "WARN"
    assert verdict.startswith("Damaged: R = 9.00 (7.00 to 11.00, 256 samples)")
    assert "35.0 % of its decisions differ" in verdict
    assert verdict.endswith("The remedy is vsfix optimize.")


@pytest.mark.parametrize("ratio", [0.1, 9.0])
def test_statistics_that_are_not_those_under_the_noise_are_named_first(ratio):
    stored = (StoredAgainstNoisy("b", 8.25, 0.1), StoredAgainstNoisy("c", 1.0, 2.0))
    status, verdict = judge_inspection(replace(OFF, severity=Severity(ratio, 0.0, 11.0, 256), stored=stored))
    assert status == "WARN"
    assert "2 BatchNorms store other statistics" in verdict
    assert "'b' the first, variance off by a factor of 8.25, mean by 0.10 deviations" in verdict


def test_a_fault_beside_noise_is_named_before_anything_else():
    residual = Residual(0.4, 0.4, 0.3, 0.04, has_other_variances=True, has_other_means=True)
    fault = Fault(FaultKind.STALE, ("a",), 4, "a", residual)
    found = replace(OFF, severity=Severity(9.0, 7.0, 11.0, 256), fault=fault)
    status, verdict = judge_inspection(found)
    assert status == "WARN"
    assert verdict.startswith("The statistics are stale")
    assert "1 of 4 BatchNorms, the worst 'a', its variances off by 0.40" in verdict
    assert "--method exact --layers all" in verdict


def test_noise_that_is_not_certain_is_no_pass():
    found = replace(inspection(row("a"), samples=500), question="two places explain as much")
    assert judge_inspection(found) == ("WARN", "Not clear: two places explain as much.")


def test_noise_that_nothing_ran_with_is_not_called_harmless():
    status, sentence = judge_inspection(Inspection((), ("drop dropout:0.5",), 0, ()))
    assert (status, "--data" in sentence) == ("WARN", True)


@pytest.mark.parametrize(
    ("ratio", "changed", "status"),
    [(0.19, 0.16, "WARN"), (0.19, 0.02, "PASS"), (0.04, 0.2, "PASS"), (0.5, 0.0, "WARN")],
)
def test_a_classifier_many_of_whose_decisions_differ_is_not_called_healthy(ratio, changed, status):
    severity = Severity(ratio, ratio - 0.02, ratio + 0.02, 256, changed)
    found = replace(inspection(row("a", "dropout:0.5", None, 1.1), samples=256), severity=severity)
    said, sentence = judge_inspection(found)
    assert said == status
    assert sentence.startswith("Not clear: R = " if status == "WARN" else "Nothing to repair: R = ")
