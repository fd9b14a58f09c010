"""The evidence of a sample supports its estimates: intervals cover, channels are drawn together, no error is made."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.statistics.estimate import weigh
from vsfix.graph_passes.statistics.evidence import Evidence
from vsfix.graph_passes.statistics.moments import Moments


@pytest.fixture
def batch_norm_of(parse):
    """Makes a BatchNorm of so many channels that stores mean 0 and variance 1."""

    def build(channels: int):
        weights = {name: np.ones(channels, np.float32) for name in "gbv"} | {"m": np.zeros(channels, np.float32)}
        body = f"(float[N, {channels}] x) => (float[N, {channels}] y) {{ y = BatchNormalization (x, g, b, m, v) }}"
        (batch_norm,) = find_batch_norms(import_graph(parse(body, weights)))
        return batch_norm

    return build


@pytest.fixture
def stored(batch_norm_of):
    return batch_norm_of(12)


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


def test_a_healthy_batch_norm_is_unchanged_most_of_the_time(stored):
    left = 0
    for seed in range(100):
        estimate = weigh(stored, Evidence.of_reestimation(stored, drawn(np.random.default_rng(seed), 32)))
        left += (estimate.variance == stored.variance).all()
        assert np.abs(np.log(estimate.variance)).mean() < 0.35
    assert left >= 90


def activations(rng: np.random.Generator, samples: int, contrast: float, factors: int) -> np.ndarray:
    """Outputs of a convolution of images: channels that share factors, samples that differ in contrast."""
    mixed = np.einsum("nks,kc->ncs", rng.normal(size=(samples, factors, 16)), rng.normal(size=(factors, 12)))
    values = mixed + 0.5 * rng.normal(size=mixed.shape)
    return values * np.exp(contrast * rng.normal(size=(samples, 1, 1))) + 0.3


@pytest.mark.parametrize(("samples", "contrast", "factors"), [(16, 0.5, 2), (32, 0.5, 2), (32, 0.25, 5), (64, 0.0, 1)])
def test_noise_that_shifts_nothing_changes_a_batch_norm_in_one_of_twenty_cases_at_most(
    stored, samples, contrast, factors
):
    """Two draws of one noise on the same samples: whatever differs is chance, in correlated channels."""
    changed, runs = 0, 300
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        x = activations(rng, samples, contrast, factors)
        on, off = (Moments.of(x * (1 + 0.5 * rng.normal(size=(samples, 1, 16)))) for _ in range(2))
        estimate = weigh(stored, Evidence.of_pair(stored, on, off))
        changed += bool((estimate.variance != stored.variance).any() or (estimate.mean != stored.mean).any())
    assert scipy.stats.binomtest(changed, runs, 0.05, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("samples", [16, 64])
def test_the_interval_covers_where_channels_are_correlated_and_contrasts_differ(stored, samples):
    covered, runs = 0, 300
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        x = activations(rng, samples, 0.5, 2)
        on, off = (Moments.of(x * (1 + 0.5 * rng.normal(size=(samples, 1, 16)))) for _ in range(2))
        low, high = weigh(stored, Evidence.of_pair(stored, on, off)).interval
        covered += low <= 1 <= high
    assert 0.91 * runs <= covered <= 0.99 * runs


@pytest.mark.long
@pytest.mark.parametrize("looks", [1, 4])
def test_a_growing_set_that_is_looked_at_often_claims_no_more_than_one_look(stored, looks):
    """Samples are taken until an interval excludes 1: with each look at 5 % that happens far oftener than that."""
    excluded, runs = 0, 300
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        x = activations(rng, 128, 0.25, 2)
        on, off = (x * (1 + 0.5 * rng.normal(size=(128, 1, 16))) for _ in range(2))
        seen = [
            weigh(stored, Evidence.of_pair(stored, Moments.of(on[:part]), Moments.of(off[:part])), looks).interval
            for part in (16, 32, 64, 128)
        ]
        excluded += any(not low <= 1 <= high for low, high in seen)
    within = scipy.stats.binomtest(excluded, runs, 0.05, alternative="greater").pvalue > 0.01
    assert bool(within) is (looks == 4)


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


def test_a_channel_without_variance_is_invalid_and_unchanged(stored):
    values = np.random.default_rng(0).normal(0, 3, (200, 12))
    values[:, 4] = 7
    estimate = weigh(stored, Evidence.of_reestimation(stored, Moments.of(values)))
    assert np.flatnonzero(estimate.invalid).tolist() == [4]
    assert estimate.mean[4] == 0
    assert estimate.variance[4] == 1
    assert np.isfinite(estimate.variance).all()


def test_too_few_samples_are_an_error(stored):
    with pytest.raises(DataError, match="at least 8 samples"):
        Evidence.of_reestimation(stored, Moments.of(np.eye(3, 12)))


@pytest.mark.parametrize("samples", [16, 32, 128])
def test_many_channels_do_not_turn_the_bias_of_a_logarithm_into_evidence(batch_norm_of, samples):
    """The mean over 256 healthy channels is sure to a percent, and ln of each sample variance is low by 1/n."""
    stored = batch_norm_of(256)
    excluded = 0
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=(samples, 256))
        low, high = weigh(stored, Evidence.of_reestimation(stored, Moments.of(values))).interval
        excluded += not low <= 1 <= high
    assert excluded <= 4


def test_a_channel_that_lives_in_one_sample_is_invalid(stored):
    values = np.zeros((40, 12))
    values[3] = np.random.default_rng(0).normal(size=12)
    estimate = weigh(stored, Evidence.of_pair(stored, Moments.of(2 * values), Moments.of(values)))
    assert estimate.invalid.all()
    np.testing.assert_array_equal(estimate.variance, stored.variance)


def evidence_of(log_ratio, mean_move, error: float, signs=None, **changes) -> Evidence:
    """Readings from five groups of samples, each with the standard error `error`.

    Where the errors have signs, those of the channels cancel in their mean.
    """
    pattern = np.array([1.0, -1.0, 1.0, -1.0, 0.0])[:, None] * error / np.sqrt(4 * 4 / 5)  # (G, 1)
    errors = pattern * (np.ones(12) if signs is None else signs)
    log_ratio, mean_move = np.broadcast_to(log_ratio, 12), np.broadcast_to(mean_move, 12)
    fields = {"valid": np.ones(12, bool), "samples": 5} | changes
    return Evidence(log_ratio, mean_move, log_ratio + errors, mean_move + errors, **fields)


SIGNS = np.resize([1.0, -1.0], 12)


def test_errors_from_few_groups_are_taken_for_larger_than_they_seem(stored):
    """With five groups Student's t has four degrees of freedom, and the variance 4 / (4 - 2)."""
    estimate = weigh(stored, evidence_of(0.6 * SIGNS, 1.2 * SIGNS, 0.1, SIGNS))
    np.testing.assert_allclose(np.log(estimate.variance), (1 - 2 * 0.1**2 / 0.6**2) * 0.6 * SIGNS, rtol=1e-9)
    np.testing.assert_allclose(estimate.mean, (1 - 2 * 0.1**2 / 1.2**2) * 1.2 * SIGNS, rtol=1e-9)


def test_more_looks_make_the_interval_that_of_a_smaller_level(stored):
    estimate = weigh(stored, evidence_of(0.3, 0.0, 0.1), looks=5)
    margin = scipy.stats.t.ppf(1 - 0.05 / 5 / 2, 4) * 0.1
    assert estimate.interval == pytest.approx((np.exp(0.3 - margin), np.exp(0.3 + margin)), rel=1e-6)


@pytest.mark.parametrize("bias", [0.0, 0.05])
def test_the_interval_of_the_shift_is_students_and_as_much_wider_as_it_may_be_biased(stored, bias):
    estimate = weigh(stored, evidence_of(0.3, 0.0, 0.1, bias=bias))
    margin = np.hypot(scipy.stats.t.ppf(0.975, 4) * 0.1, bias)
    assert estimate.shift == pytest.approx(np.exp(0.3), rel=1e-12)
    assert estimate.interval == pytest.approx((np.exp(0.3 - margin), np.exp(0.3 + margin)), rel=1e-3)
    assert estimate.half_width == pytest.approx(margin, rel=1e-3)


def test_a_channel_that_is_not_sure_of_anything_has_no_say_in_the_shift(stored):
    log_ratio, errors = np.full(12, 0.3), np.full(12, 0.1)
    log_ratio[7], errors[7] = -4.0, 0.6
    estimate = weigh(stored, evidence_of(log_ratio, 0.0, 1.0, errors))
    assert estimate.shift == pytest.approx(np.exp(0.3), rel=1e-12)


def test_the_moves_of_the_means_have_nothing_in_common_with_the_variances(stored):
    """A shift that is sure, and means that move by no more than chance: they stay to the bit."""
    estimate = weigh(stored, evidence_of(0.3, 0.001 * SIGNS, 0.01))
    assert (estimate.variance > 1.3).all()
    np.testing.assert_array_equal(estimate.mean, stored.mean)


@pytest.fixture
def wide(batch_norm_of):
    return batch_norm_of(3000)


def test_the_logarithm_of_a_variance_from_few_samples_is_not_too_low(wide):
    """It would be by 1/15 + 1/16 for 16 values; what is left of that is within the bias that is stated."""
    values = np.random.default_rng(0).normal(size=(16, 3000))
    evidence = Evidence.of_reestimation(wide, Moments.of(values))
    assert np.log(values.var(axis=0)).mean() < -0.12
    assert abs(evidence.log_ratio.mean()) < 0.02 < evidence.bias
    assert evidence.bias == 2 / 16


def test_the_ratio_of_a_pair_is_not_biased_by_the_heavier_tails_of_the_noise(wide):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 3000))
    on = Moments.of(x * 2 * (rng.random((16, 3000)) < 0.5))
    off = Moments.of(x)
    measured = np.log(off.variance / on.variance).mean() - np.log(0.5)
    assert measured > 0.1
    assert abs(Evidence.of_pair(wide, on, off).log_ratio[on.variance > 0].mean() - np.log(0.5)) < 0.4 * measured


@pytest.mark.parametrize("spoil", ["constant", "one sample", "rounding"])
@pytest.mark.parametrize("run", ["on", "off"])
def test_a_channel_without_variance_in_either_run_is_invalid(stored, run, spoil):
    values = {name: np.random.default_rng(0).normal(size=(40, 12)) for name in ("on", "off")}
    values[run][:, 5] = 1e4
    values[run][3, 5] += float(spoil == "one sample")
    values[run][::2, 5] += 0.01 * (spoil == "rounding")
    evidence = Evidence.of_pair(stored, Moments.of(values["on"]), Moments.of(values["off"]))
    assert np.flatnonzero(~evidence.valid).tolist() == [5]
    assert evidence.log_ratio[5] == evidence.mean_move[5] == 0


@pytest.mark.parametrize(("samples", "positions", "enough"), [(3, 9, False), (4, 1, False), (4, 2, True), (8, 1, True)])
def test_four_samples_with_eight_values_are_the_least(stored, samples, positions, enough):
    moments = Moments.of(np.random.default_rng(0).normal(size=(samples, 12, positions)))
    if enough:
        assert Evidence.of_reestimation(stored, moments).samples == samples
        return
    with pytest.raises(DataError, match=f"sees only {samples} samples with {samples * positions} values"):
        Evidence.of_pair(stored, moments, moments)
