from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.statistics.moments import Moments, MomentsAccumulator, SampleMoments

VALUES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(2, 9), st.integers(1, 3), st.integers(1, 4)),
    elements=st.floats(-1e3, 1e3, width=32),
)


def rational_moments(values: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and biased variance in exact rational arithmetic."""
    means, variances = [], []
    for channel in range(values.shape[1]):
        column = [Fraction(float(value)) for value in values[:, channel].ravel()]
        mean = sum(column) / len(column)
        means.append(float(mean))
        variances.append(float(sum((value - mean) ** 2 for value in column) / len(column)))
    return means, variances


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_moments_equal_rational_arithmetic(values):
    moments = Moments.of(values)
    means, variances = rational_moments(values)
    scale = float(np.abs(values).max()) + 1e-30
    np.testing.assert_allclose(moments.mean, means, rtol=1e-13, atol=1e-13 * scale)
    np.testing.assert_allclose(moments.variance, variances, rtol=1e-12, atol=1e-13 * scale**2)


def accumulate(parts: list[np.ndarray], groups: int = 32) -> Moments:
    accumulator, first = MomentsAccumulator(groups), 0
    for part in parts:
        accumulator.add(SampleMoments.of(part), first)
        first += len(part)
    return accumulator.result()


@settings(max_examples=60, deadline=None)
@given(VALUES, st.data())
def test_splitting_the_samples_changes_nothing(values, data):
    cuts = sorted(data.draw(st.lists(st.integers(1, len(values) - 1), max_size=3, unique=True)))
    groups = data.draw(st.integers(1, 12))
    split, whole = accumulate(np.split(values, cuts), groups), accumulate([values], 32)
    scale = float(np.abs(values).max()) + 1e-30
    assert split.count == whole.count
    assert split.samples == whole.samples == len(values)
    np.testing.assert_allclose(split.mean, whole.mean, rtol=1e-12, atol=1e-13 * scale)
    np.testing.assert_allclose(split.variance, whole.variance, rtol=1e-11, atol=1e-13 * scale**2)


@pytest.mark.parametrize("parts", [[70], [1, 69], [33, 30, 7], [10] * 7])
def test_a_sample_goes_to_the_same_group_however_the_set_is_cut(parts):
    values = np.random.default_rng(0).normal(size=(70, 3, 5))
    moments = accumulate(np.split(values, np.cumsum(parts)[:-1]), groups=8)
    for group in range(8):
        np.testing.assert_allclose(moments.group_means[group], values[group::8].mean(axis=(0, 2)), rtol=1e-12)


def test_moments_without_a_group_are_those_of_the_other_samples():
    values = 1e3 + np.random.default_rng(1).normal(size=(50, 4, 3))
    means, variances = accumulate([values[:20], values[20:]], groups=7).without_each_group()
    for group in range(7):
        others = np.delete(values, np.s_[group::7], axis=0)
        np.testing.assert_allclose(means[group], others.mean(axis=(0, 2)), rtol=1e-13)
        np.testing.assert_allclose(variances[group], others.var(axis=(0, 2)), rtol=1e-9)


def test_one_sample_has_no_rest():
    with pytest.raises(DataError, match="one sample"):
        Moments.of(np.ones((1, 3, 4))).without_each_group()


def test_a_large_mean_does_not_cancel_the_variance():
    values = (1e4 + np.random.default_rng(0).normal(size=(4096, 1))).astype(np.float32)
    truth = values.astype(np.longdouble).var()
    merged = accumulate([values[:1000], values[1000:]])
    assert merged.variance[0] == pytest.approx(float(truth), rel=1e-12)
    naive = np.mean(values**2, dtype=np.float32) - np.mean(values, dtype=np.float32) ** 2
    assert abs(naive - float(truth)) > 0.1 * float(truth), "the textbook formula is the mistake this suite must see"


def test_batches_weigh_by_their_size():
    moments = accumulate([np.zeros((1, 1)), np.ones((3, 1))])
    assert moments.mean[0] == 0.75
    assert moments.variance[0] == 0.1875


def test_positions_count_as_values():
    assert Moments.of(np.zeros((2, 3, 4, 5))).count == 40


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((0, 3)), np.zeros((2, 3, 0))])
def test_values_without_channels_or_samples_are_refused(values):
    with pytest.raises(DataError):
        Moments.of(values)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_channel(bad):
    values = np.zeros((2, 3, 4))
    values[1, 2, 0] = bad
    with pytest.raises(DataError, match="channel 2"), np.errstate(invalid="ignore"):
        Moments.of(values)


def test_rows_of_one_sample_are_one_sample():
    values = np.random.default_rng(0).normal(size=(6, 5, 3, 4))  # N, T, C, positions
    folded = SampleMoments.of(values.reshape(30, 3, 4)).of_samples(6)
    truth = SampleMoments.of(values.transpose(0, 2, 1, 3))
    assert folded.positions == 20
    np.testing.assert_allclose(folded.mean, truth.mean, rtol=1e-12)
    np.testing.assert_allclose(folded.centred_sum, truth.centred_sum, rtol=1e-12)


def test_rows_that_can_not_be_shared_out_are_refused():
    with pytest.raises(DataError, match="7 rows for 2 samples"):
        SampleMoments.of(np.ones((7, 3))).of_samples(2)


@pytest.mark.parametrize(
    ("mean", "variance", "degenerate"),
    [
        (100.0, 0.9e-6, True),  # the floor is 1e-10 of the squared mean
        (100.0, 1.1e-6, False),
        (0.01, 1.1e-14, False),
        (0.0, 0.0, True),
        (0.0, 1e-39, True),  # no normal number of float32
        (0.0, 1e-37, False),
    ],
)
def test_a_variance_below_the_rounding_of_float32_is_degenerate(mean, variance, degenerate):
    moments = Moments(10, np.array([10]), np.array([[mean]]), np.array([[10 * variance]]))
    assert moments.degenerate.tolist() == [degenerate]
