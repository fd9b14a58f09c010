from __future__ import annotations

import math
from dataclasses import astuple
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vsfix.graph_passes.errors import DataError
from vsfix.pipeline.comparison.tensor_comparison import comparable, compare_tensors

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
    if reference.shape[1] == 1:  # its cosine is its sign alone
        assert math.isnan(found.cosine_min)
        assert math.isnan(found.cosine_mean)
        return
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
    assert compare_tensors(reference + 4, output + 4).p999_rel == pytest.approx(999.0 / 4, abs=1e-9)


def test_an_error_of_a_hundredth_is_forty_decibels():
    reference = np.full((4, 5), 2.0)
    assert compare_tensors(reference, reference * 1.01).snr_db == pytest.approx(40.0, abs=1e-9)


def test_equal_tensors_have_no_error():
    reference, _ = noisy()
    found = compare_tensors(reference, reference.copy())
    assert astuple(found)[:6] == (0, 0, 0, 0, 0, math.inf)
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


def test_bfloat16_is_compared_as_what_it_holds():
    x = np.random.default_rng(0).normal(size=(4, 50))
    narrow = x.astype(ml_dtypes.bfloat16)
    assert compare_tensors(x, narrow).max_abs == np.abs(x - narrow.astype(np.float64)).max() > 0
    assert compare_tensors(narrow, narrow).snr_db == math.inf
    with pytest.raises(DataError, match="only real numbers"):
        compare_tensors(x, np.zeros(x.shape, "V2"))


def test_only_what_is_not_finite_in_both_is_left_out():
    """A causal mask gives both the same infinities; equal numbers are the signal that the noise is measured against."""
    expected = np.array([[1.0, -np.inf, np.nan, np.inf, np.nan, 2.0]])
    found = np.array([[1.0, -np.inf, np.nan, -np.inf, 0.0, 3.0]])
    left, right = comparable(expected, found)
    np.testing.assert_array_equal(left, [[1.0, 0.0, 0.0, np.inf, np.nan, 2.0]])
    np.testing.assert_array_equal(right, [[1.0, 0.0, 0.0, -np.inf, 0.0, 3.0]])


def test_whole_numbers_and_other_shapes_are_left_as_they_are_but_for_a_batch_axis():
    left, right = comparable(np.array(3), np.array([1.0, np.nan]))
    np.testing.assert_array_equal(left, [3])
    np.testing.assert_array_equal(right, [1.0, np.nan])
