from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.noise_average.nearness import AS_TRAINED
from vsfix.pipeline.repair.candidates import CandidateRow, choose_by_labels

RNG = np.random.default_rng(0)
GIVEN = RNG.normal(size=300)


def row(name: str, severity: float) -> CandidateRow:
    difference = severity - 1.0
    return CandidateRow(name, severity, difference, difference - 0.1, difference + 0.1, 0.001, None)


def moved(by: float) -> np.ndarray:
    return GIVEN + by + 0.1 * RNG.normal(size=300)


ROWS = [row(AS_TRAINED, 1.0), row("match", 0.1), row("paired", 3.0)]


@pytest.mark.parametrize(
    ("others", "may_leave", "chosen"),
    [
        ((), True, "paired"),  # every output is judged, and it scores best
        ((), False, "match"),  # an output that no label judges: R speaks for it
        ((0.0, 0.0), True, "paired"),
        ((0.0, -0.5), True, "match"),  # `paired` makes the other output worse
        ((-0.5, -0.5), True, AS_TRAINED),
    ],
)
def test_labels_choose_no_candidate_that_makes_another_output_worse(others, may_leave, chosen):
    scores = {AS_TRAINED: [GIVEN], "match": [moved(0.2)], "paired": [moved(0.5)]}
    if others:
        for name, by in (("match", others[0]), ("paired", others[1])):
            scores[name].append(moved(by))
        scores[AS_TRAINED].append(GIVEN)
    assert choose_by_labels(ROWS, scores, is_enough=False, may_leave=may_leave) == chosen


def test_where_labels_tell_nothing_the_nearest_is_taken_if_r_asks_for_it():
    scores = {AS_TRAINED: [GIVEN], "match": [moved(0.0)], "paired": [moved(0.0)]}
    assert choose_by_labels(ROWS, scores, is_enough=False, may_leave=True) == "match"
    assert choose_by_labels(ROWS, scores, is_enough=True, may_leave=True) == AS_TRAINED
    scores["match"] = [moved(-0.5)]
    assert choose_by_labels(ROWS, scores, is_enough=False, may_leave=True) == AS_TRAINED


def test_the_best_of_many_candidates_is_no_better_than_chance_makes_it():
    rng, chosen = np.random.default_rng(5), []
    for _ in range(200):
        given = (rng.random(400) < 0.5).astype(np.float64)
        flips = {name: rng.random(400) < 0.1 for name in "abcdef"}  # as good as the file, in other samples
        scores = {AS_TRAINED: [given]} | {
            name: [np.where(flip, rng.random(400) < 0.5, given).astype(np.float64)] for name, flip in flips.items()
        }
        rows = [row(AS_TRAINED, 1.0), *(row(name, 2.0) for name in "abcdef")]
        chosen.append(choose_by_labels(rows, scores, is_enough=True, may_leave=True))
    assert np.mean([name != AS_TRAINED for name in chosen]) < 0.05
