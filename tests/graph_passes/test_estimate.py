"""What the evidence of a sample supports: intervals that cover, channels that are drawn together, harm that is not done."""

from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.estimate import weigh
from vsfix.graph_passes.evidence import Evidence
from vsfix.graph_passes.model_file import import_graph
from vsfix.graph_passes.moments import Moments


@pytest.fixture
def stored(parse):
    """A BatchNorm of 12 channels that stores mean 0 and variance 1."""
    weights = {name: np.ones(12, np.float32) for name in "gbv"} | {"m": np.zeros(12, np.float32)}
    model = parse("(float[N, 12] x) => (float[N, 12] y) { y = BatchNormalization (x, g, b, m, v) }", weights)
    (batch_norm,) = find_batch_norms(import_graph(model))
    return batch_norm


def drawn(rng, samples: int, deviation=1.0) -> Moments:
    return Moments.of(rng.normal(0, deviation, (samples, 12)))


@pytest.mark.parametrize(("samples", "deviation"), [(24, 1.0), (64, 1.5)])
def test_the_interval_covers_the_true_shift_about_as_often_as_it_says(stored, samples, deviation):
    covered = 0
    for seed in range(200):
        moments = drawn(np.random.default_rng(seed), samples, deviation)
        low, high = weigh(stored, Evidence.of_reestimation(stored, moments)).interval
        bias = 1 / samples  # ln of a sample variance lies that much too low, twice over
        covered += np.log(low) <= 2 * np.log(deviation) - bias <= np.log(high)
    assert covered >= 180


def test_a_healthy_batch_norm_is_left_alone_most_of_the_time(stored):
    left = 0
    for seed in range(100):
        estimate = weigh(stored, Evidence.of_reestimation(stored, drawn(np.random.default_rng(seed), 32)))
        left += (estimate.variance == stored.variance).all()
        assert np.abs(np.log(estimate.variance)).mean() < 0.35
    assert left >= 70


def test_with_little_data_the_weighed_variances_are_nearer_to_the_truth_than_the_measured_ones(stored):
    weighed, measured = [], []
    for seed in range(20):
        moments = drawn(np.random.default_rng(seed), 16, deviation=0.7)
        estimate = weigh(stored, Evidence.of_reestimation(stored, moments))
        weighed.append(np.abs(np.log(estimate.variance / 0.49)).mean())
        measured.append(np.abs(np.log(moments.variance / 0.49)).mean())
    assert np.mean(weighed) < 0.6 * np.mean(measured)


def test_channels_of_their_own_stay_of_their_own_with_much_data(stored):
    deviations = np.linspace(0.5, 2, 12)
    moments = Moments.of(np.random.default_rng(0).normal(0, deviations, (20000, 12)))
    estimate = weigh(stored, Evidence.of_reestimation(stored, moments))
    np.testing.assert_allclose(estimate.variance, moments.variance, rtol=1e-3)
    assert (estimate.channel_intervals[:, 0] < deviations**2).all()
    assert (estimate.channel_intervals[:, 1] > deviations**2).all()


def test_the_pair_cancels_what_the_sample_lacks(stored):
    """Noise that doubles the variance, and eight samples that are far too narrow in every channel."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 0.4, (64, 12, 9))
    on = x[:, :, :, None] * (2 * (rng.random((64, 12, 9, 8)) < 0.5))
    evidence = Evidence.of_pair(stored, Moments.of(on), Moments.of(x))
    np.testing.assert_allclose(weigh(stored, evidence).variance, 0.5, rtol=0.1)


def test_a_channel_without_variance_is_unusable_and_keeps_what_it_stores(stored):
    values = np.random.default_rng(0).normal(0, 3, (200, 12))
    values[:, 4] = 7
    estimate = weigh(stored, Evidence.of_reestimation(stored, Moments.of(values)))
    assert np.flatnonzero(estimate.unusable).tolist() == [4]
    assert estimate.mean[4] == 0
    assert estimate.variance[4] == 1
    assert np.isfinite(estimate.variance).all()


def test_too_few_samples_are_an_error(stored):
    with pytest.raises(DataError, match="at least 8 samples"):
        Evidence.of_reestimation(stored, Moments.of(np.eye(3, 12)))


@pytest.mark.parametrize("samples", [16, 32, 128])
def test_many_channels_do_not_turn_the_bias_of_a_logarithm_into_evidence(parse, samples):
    """The mean over 256 healthy channels is sure to a percent, and ln of each sample variance is low by 1/n."""
    weights = {name: np.ones(256, np.float32) for name in "gbv"} | {"m": np.zeros(256, np.float32)}
    graph = import_graph(
        parse("(float[N, 256] x) => (float[N, 256] y) { y = BatchNormalization (x, g, b, m, v) }", weights)
    )
    (stored,) = find_batch_norms(graph)
    excluded = 0
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=(samples, 256))
        low, high = weigh(stored, Evidence.of_reestimation(stored, Moments.of(values))).interval
        excluded += not low <= 1 <= high
    assert excluded <= 4


def test_a_channel_that_lives_in_one_sample_is_unusable(stored):
    values = np.zeros((40, 12))
    values[3] = np.random.default_rng(0).normal(size=12)
    estimate = weigh(stored, Evidence.of_pair(stored, Moments.of(2 * values), Moments.of(values)))
    assert estimate.unusable.all()
    np.testing.assert_array_equal(estimate.variance, stored.variance)
