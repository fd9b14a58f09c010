from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy

from vsfix.graph_passes.errors import DataError
from vsfix.pipeline.comparison.decisions import bar_of, compare_decisions
from vsfix.pipeline.comparison.proportion import mcnemar_p_value, proportion


@given(st.data())
def test_decisions_are_those_of_counting_by_hand(data):
    n, classes = data.draw(st.integers(1, 20)), data.draw(st.integers(2, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    reference, output = rng.normal(size=(2, n, classes))
    labels = rng.integers(0, classes, n)
    rows = [
        (max(range(classes), key=lambda c: reference[i, c]), max(range(classes), key=lambda c: output[i, c]), labels[i])
        for i in range(n)
    ]
    found = compare_decisions(reference, output, labels)
    assert found.flips == sum(a != b for a, b, _ in rows)
    assert found.agreement == sum(a == b for a, b, _ in rows) / n
    assert found.task is not None
    assert found.task.reference.count == sum(a == label for a, _, label in rows)
    assert found.task.output.count == sum(b == label for _, b, label in rows)
    assert found.task.good_to_bad == sum(a == label != b for a, b, label in rows)
    assert found.task.bad_to_good == sum(b == label != a for a, b, label in rows)
    assert found.task.p_value == mcnemar_p_value(found.task.good_to_bad, found.task.bad_to_good)


def test_a_row_that_is_not_finite_is_a_flip_and_a_wrong_answer():
    reference = np.array([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    output = np.array([[np.nan, 0.0], [2.0, 1.0], [np.inf, np.inf]])
    found = compare_decisions(reference, output, np.array([0, 0, 0]))
    assert found.task is not None
    assert (found.flips, found.task.good_to_bad, found.task.bad_to_good) == (2, 1, 0)
    assert found.task.output == proportion(1, 3)
    assert found.divergence == math.inf


def test_without_labels_there_is_no_accuracy():
    reference, output = np.random.default_rng(0).normal(size=(2, 9, 3))
    assert compare_decisions(reference, output).task is None


def test_logits_that_were_swapped_are_found():
    reference = np.random.default_rng(0).normal(size=(200, 10))
    assert compare_decisions(reference, reference + 1e-9).agreement == 1
    assert compare_decisions(reference, np.roll(reference, 1, axis=1)).agreement < 0.5


@pytest.mark.parametrize(
    ("shape", "labels", "words"),
    [
        ((3,), None, "decisions need"),
        ((0, 3), None, "decisions need"),
        ((3, 1), None, "at least 2 classes"),
        ((3, 2, 2), None, "decisions need"),
        ((3, 2), np.array([0, 1]), r"shape \(3,\)"),
        ((3, 2), np.array([0.0, 1.0, 1.0]), "whole numbers"),
        ((3, 2), np.array([0, 1, 2]), "label of sample 2 is 2"),
        ((3, 2), np.array([0, -1, 1]), "label of sample 1 is -1"),
    ],
)
def test_what_decides_nothing_is_refused(shape, labels, words):
    with pytest.raises(DataError, match=words):
        compare_decisions(np.zeros(shape), np.zeros(shape), labels)


def test_the_divergence_is_that_of_scipy():
    reference, output = np.random.default_rng(0).normal(0, 3, size=(2, 40, 6))
    wanted = np.mean(entropy(softmax(reference, axis=1), softmax(output, axis=1), axis=1))
    assert compare_decisions(reference, output).divergence == pytest.approx(wanted, rel=1e-12)
    assert compare_decisions(reference, reference + 5).divergence == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("digits", [np.float64, np.float16])
def test_outputs_that_are_probabilities_already_are_no_logits(digits):
    reference, output = softmax(np.random.default_rng(5).normal(0, 1.5, (2, 40, 6)), axis=2).astype(digits)
    scipy = np.mean([entropy(p, q) for p, q in zip(reference.astype(float), output.astype(float), strict=True)])
    assert compare_decisions(reference, output).divergence == pytest.approx(
        scipy, rel=1e-2 if digits is np.float16 else 1e-9
    )
    # Their softmax is another distribution, and much nearer: what a planted mistake would give.
    wrong = np.mean([entropy(softmax(p), softmax(q)) for p, q in zip(reference, output, strict=True)])
    assert wrong < 0.5 * scipy


@pytest.mark.parametrize(("scale", "shift"), [(1.02, 0.0), (1.0, -1e-6)])
def test_a_candidate_that_has_left_the_probabilities_is_still_held_against_them(scale, shift):
    reference = softmax(np.random.default_rng(5).normal(0, 1.5, (40, 6)), axis=1)
    output = np.roll(reference, 1, axis=1)
    wanted = np.mean(entropy(reference, output, axis=1))
    assert compare_decisions(reference, scale * output + shift).divergence == pytest.approx(wanted, rel=1e-2)


def test_a_probability_that_has_become_zero_leaves_the_divergence_finite():
    found = compare_decisions(np.array([[1 - 1e-9, 1e-9], [0.5, 0.5]]), np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert 0 <= found.divergence < 1e-7


def test_large_logits_leave_the_divergence_finite():
    assert compare_decisions(np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]])).divergence == pytest.approx(1e4)


def test_the_first_five_places_are_those_of_sorting():
    rng = np.random.default_rng(3)
    reference, output = rng.normal(size=(2, 300, 12))
    labels = rng.integers(0, 12, 300)
    found = compare_decisions(reference, output, labels).task
    assert found is not None
    for share, logits in ((found.reference_top5, reference), (found.output_top5, output)):
        wanted = sum(label in np.argsort(-row)[:5] for row, label in zip(logits, labels, strict=True))
        assert share == proportion(wanted, 300)
    assert found.retention == found.output.count / found.reference.count


def test_few_classes_have_no_top5_and_a_reference_that_is_never_right_no_retention():
    found = compare_decisions(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([1])).task
    assert found is not None
    assert (found.reference_top5, found.output_top5, found.retention) == (None, None, None)


@pytest.mark.parametrize(("classes", "has_top5"), [(5, False), (6, True)])
def test_the_first_five_of_five_say_nothing(classes, has_top5):
    logits = np.eye(classes)
    found = compare_decisions(logits, logits, np.arange(classes)).task
    assert found is not None
    assert (found.reference_top5 is not None, found.output_top5 is not None) == (has_top5, has_top5)


def test_among_equal_logits_the_first_class_decides():
    logits = np.zeros((2, 7))
    found = compare_decisions(logits, logits, np.array([0, 5])).task
    assert found is not None
    assert (found.reference.count, found.reference_top5) == (1, proportion(1, 2))


@pytest.mark.parametrize(("kept", "bar"), [(1000, 0.999), (999, 0.999), (998, 0.99), (990, 0.99), (989, 0.0)])
def test_the_bar_of_a_retention_is_the_highest_that_it_reaches(kept, bar):
    reference = np.tile([0.0, 1.0], (1000, 1))
    output = reference.copy()
    output[kept:] = output[kept:, ::-1]
    task = compare_decisions(reference, output, np.ones(1000, dtype=np.int64)).task
    assert task is not None
    assert bar_of(task.retention) == bar
    never = compare_decisions(reference, output, np.zeros(1000, dtype=np.int64)).task
    assert never is not None
    assert never.retention is None
