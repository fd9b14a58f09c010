from __future__ import annotations

import math
from dataclasses import astuple
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vsfix.graph_passes.errors import DataError
from vsfix.pipeline.metrics import compare_decisions, compare_tensors, proportion, wilson_interval

WHOLE = st.integers(-1000, 1000)
PAIRS = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        *(arrays.arrays(np.int64, (n, 3), elements=WHOLE) for _ in range(2)),
    )
)


def noisy(seed: int = 0, shape: tuple[int, ...] = (50, 4, 3), noise: float = 1e-3):
    rng = np.random.default_rng(seed)
    reference = rng.normal(0, 2, shape).astype(np.float32)
    return reference, reference + rng.normal(0, noise, shape).astype(np.float32)


@given(PAIRS)
def test_the_numbers_are_those_of_exact_arithmetic(pair):
    reference, output = pair
    left = [[Fraction(int(value)) for value in row] for row in reference]
    right = [[Fraction(int(value)) for value in row] for row in output]
    errors = [abs(a - b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)]
    signal = sum(a * a for x in left for a in x)
    peak = max(abs(a) for x in left for a in x)
    found = compare_tensors(reference, output)
    assert found.max_abs == max(errors)
    assert found.mean_abs == pytest.approx(float(sum(errors) / len(errors)), rel=1e-12)
    if signal and any(errors):
        assert found.max_rel == pytest.approx(float(max(errors) / peak), rel=1e-12)
        assert found.snr_db == pytest.approx(10 * math.log10(signal / sum(e * e for e in errors)), abs=1e-9)
    cosines = [_cosine(x, y) for x, y in zip(left, right, strict=True)]
    assert found.cosine_min == pytest.approx(min(cosines), abs=1e-12)
    assert found.cosine_mean == pytest.approx(sum(cosines) / len(cosines), abs=1e-12)


def _cosine(x: list[Fraction], y: list[Fraction]) -> float:
    a, b = sum(v * v for v in x), sum(v * v for v in y)
    if not a or not b:
        return float(not a and not b)
    return float(sum(v * w for v, w in zip(x, y, strict=True))) / math.sqrt(float(a) * float(b))


def test_the_percentile_is_the_value_that_sorting_gives():
    reference = np.zeros((1001, 1))
    output = np.random.default_rng(0).permutation(1001)[:, None].astype(np.float64)
    assert compare_tensors(reference, output).p999_abs == pytest.approx(999.0, abs=1e-9)


def test_an_error_of_a_hundredth_is_forty_decibels():
    reference = np.full((4, 5), 2.0)
    assert compare_tensors(reference, reference * 1.01).snr_db == pytest.approx(40.0, abs=1e-9)


def test_equal_tensors_have_no_error():
    reference, _ = noisy()
    found = compare_tensors(reference, reference.copy())
    assert astuple(found)[:5] == (0, 0, 0, 0, math.inf)
    assert found.cosine_min == pytest.approx(1.0, abs=1e-15)
    assert found.finite


@pytest.mark.parametrize("factor", [1e-30, 3.0, 1e30, 1e200])
def test_scaling_both_tensors_changes_no_ratio(factor):
    reference, output = (array.astype(np.float64) for array in noisy())
    plain, scaled = compare_tensors(reference, output), compare_tensors(reference * factor, output * factor)
    assert scaled.snr_db == pytest.approx(plain.snr_db, abs=1e-9)
    assert scaled.max_rel == pytest.approx(plain.max_rel, rel=1e-12)
    assert scaled.cosine_min == pytest.approx(plain.cosine_min, abs=1e-12)


def test_the_order_of_the_samples_changes_nothing():
    reference, output = noisy()
    order = np.random.default_rng(1).permutation(len(reference))
    plain, shuffled = compare_tensors(reference, output), compare_tensors(reference[order], output[order])
    assert astuple(shuffled) == pytest.approx(astuple(plain), rel=1e-12)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda output: output * 2,
        lambda output: -output,
        lambda output: np.roll(output, 1, axis=0),
        lambda output: output + 0.05,
        lambda output: np.where(np.arange(len(output))[:, None, None] == 7, 0, output),
    ],
    ids=["twice too large", "sign", "rows moved", "bias", "one sample lost"],
)
def test_a_planted_mistake_is_far_below_the_tolerance(mistake):
    reference, output = noisy(noise=1e-6)
    assert compare_tensors(reference, output).snr_db > 100
    assert compare_tensors(reference, mistake(output)).snr_db < 40


@pytest.mark.parametrize(("value", "nans", "infinities"), [(np.nan, 1, 0), (np.inf, 0, 1), (-np.inf, 0, 1)])
def test_an_output_that_is_not_finite_passes_no_threshold(value, nans, infinities):
    reference, output = noisy()
    output[3, 1, 1] = value
    found = compare_tensors(reference, output)
    assert (found.nan_count, found.inf_count, found.finite) == (nans, infinities, False)
    assert found.snr_db == -math.inf
    assert found.max_abs == math.inf
    assert not found.cosine_min > -2


def test_a_reference_of_zeros_has_no_signal():
    assert compare_tensors(np.zeros((2, 2)), np.ones((2, 2))).snr_db == -math.inf
    assert compare_tensors(np.zeros((2, 2)), np.zeros((2, 2))).snr_db == math.inf


@pytest.mark.parametrize(
    ("reference", "output", "words"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), r"\(2, 3\).*\(2, 4\)"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "hold no value"),
        (np.float64(1), np.float64(1), "without a batch axis"),
        (np.array([1.0, np.nan]), np.zeros(2), "not finite in sample 1"),
        (np.array(["a"]), np.array(["a"]), "only real numbers"),
        (np.zeros(2, dtype=complex), np.zeros(2, dtype=complex), "only real numbers"),
    ],
)
def test_what_can_not_be_compared_is_refused(reference, output, words):
    with pytest.raises(DataError, match=words):
        compare_tensors(np.asarray(reference), np.asarray(output))


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
    assert found.reference_accuracy is not None
    assert found.output_accuracy is not None
    assert found.reference_accuracy.count == sum(a == label for a, _, label in rows)
    assert found.output_accuracy.count == sum(b == label for _, b, label in rows)
    assert found.good_to_bad == sum(a == label != b for a, b, label in rows)
    assert found.bad_to_good == sum(b == label != a for a, b, label in rows)


def test_a_row_that_is_not_finite_is_a_flip_and_a_wrong_answer():
    reference = np.array([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    output = np.array([[np.nan, 0.0], [2.0, 1.0], [np.inf, np.inf]])
    found = compare_decisions(reference, output, np.array([0, 0, 0]))
    assert (found.flips, found.good_to_bad, found.bad_to_good) == (2, 1, 0)
    assert found.output_accuracy == proportion(1, 3)


def test_without_labels_there_is_no_accuracy():
    reference, output = np.random.default_rng(0).normal(size=(2, 9, 3))
    found = compare_decisions(reference, output)
    assert found.reference_accuracy is found.output_accuracy is found.good_to_bad is found.bad_to_good is None


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


def test_the_wilson_interval_solves_the_equation_that_defines_it():
    # |count/n - p| = z sqrt(p (1 - p) / n) at both ends.
    for count, total in [(1, 10), (37, 50), (499, 500), (5, 5), (0, 8)]:
        for end in wilson_interval(count, total):
            distance = abs(count / total - end)
            assert distance == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / total), abs=1e-12)


def test_the_wilson_interval_is_the_published_one():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263, 15/148, 0/20, 1/29.
    for count, total, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(count, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("count", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_no_trials_have_no_interval(count, total):
    with pytest.raises(DataError, match="at least one trial"):
        wilson_interval(count, total)
