from __future__ import annotations

from vsfix.graph_passes.noise_average.severity import Severity
from vsfix.pipeline.inspection.diagnosis import severity_sentence


def test_a_network_that_is_far_from_what_was_trained_says_how_many_times():
    said = severity_sentence(Severity(8.96, 7.0, 11.25, 32, 0.125))
    assert said.startswith("R = 8.96 (7.00 to 11.25, 32 samples): ")
    assert "are 9.0 times as far from what it was trained to answer" in said
    assert "12.5 % of its decisions differ" in said


def test_below_one_it_is_a_share():
    said = severity_sentence(Severity(0.95, 0.9, 1.0, 64, None))
    assert "are 95% as far" in said
    assert "decisions" not in said


def test_a_healthy_network_answers_as_it_was_trained_to():
    said = severity_sentence(Severity(0.05, 0.04, 0.06, 64, None))
    assert "answers as it was trained to" in said
    assert "times as far" not in said
