from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from vsfix.graph_passes.statistics.shrinkage import scatter_p_value, shrink


def readings(tau: float, error: float, channels: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.normal(0.3, tau, channels)
    return truth, truth + rng.normal(0, error, channels), np.full(channels, error)


def test_sure_readings_stay():
    _, values, errors = readings(tau=0.5, error=0.001)
    np.testing.assert_allclose(shrink(values, errors, 0.3, scatters=True), values, atol=1e-4)


def test_readings_that_are_chance_go_to_the_centre_to_the_bit():
    _, values, errors = readings(tau=0.0, error=0.2)
    np.testing.assert_array_equal(shrink(values, errors, 0.3, scatters=False), np.full(400, 0.3))


def test_between_the_two_the_error_is_less_than_that_of_either():
    truth, values, errors = readings(tau=0.2, error=0.2)
    found = shrink(values, errors, 0.3, scatters=True)
    assert np.mean((found - truth) ** 2) < 0.6 * np.mean((values - truth) ** 2)
    assert np.mean((found - truth) ** 2) < 0.6 * np.mean((0.3 - truth) ** 2)


def test_an_unsure_channel_moves_farther_than_a_sure_one():
    values, errors = np.array([1.0, 1.0, -1.0, -1.0]), np.array([0.01, 0.5, 0.01, 0.5])
    found = shrink(values, errors, 0.0, scatters=True)
    assert 0 < found[1] < found[0] < 1


def test_no_channel_is_no_trouble():
    assert shrink(np.zeros(0), np.zeros(0), 0.0, scatters=False).shape == (0,)


def test_channels_without_noise_are_not_informative_of_the_noisy_ones():
    """A Concat of a part without noise and a noisy one: the readings of the first are 0 and sure, the others must not be drawn to them."""
    values, errors = np.array([0.0] * 60 + [-0.43] * 4), np.array([0.0] * 60 + [0.03] * 4)
    np.testing.assert_allclose(shrink(values, errors, 0.0, scatters=True)[60:], -0.43, atol=0.01)
    assert (shrink(values, errors, 0.0, scatters=True)[:60] == 0).all()


def test_a_sure_reading_of_the_size_of_rounding_is_zero():
    assert shrink(np.array([1e-7, 0.2]), np.array([1e-9, 1e-9]), 0.0, scatters=False).tolist() == [0.0, 0.2]


def test_the_share_that_stays_is_that_of_der_simonian_and_laird():
    """Readings of 0.3 +- 2e with the error e: tau^2 is 4 e^2 - e^2, so that three quarters of the distance stay."""
    values, errors = 0.3 + 0.2 * np.resize([1.0, -1.0], 400), np.full(400, 0.1)
    np.testing.assert_allclose(shrink(values, errors, 0.3, scatters=True), 0.3 + 0.75 * (values - 0.3), rtol=1e-12)


def replicates(rng, correlation: float, channels: int = 40, groups: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """The means of correlated readings in groups, whose truth is 0, and the same without each group."""
    of_groups = np.sqrt(correlation) * rng.normal(size=(groups, 1))
    of_groups = of_groups + np.sqrt(1 - correlation) * rng.normal(size=(groups, channels))
    return of_groups.mean(axis=0), (of_groups.sum(axis=0) - of_groups) / (groups - 1)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.99])
def test_chance_in_correlated_channels_is_taken_for_more_in_one_of_twenty_cases_at_most(correlation):
    runs = 400
    found = sum(
        scatter_p_value(*replicates(np.random.default_rng(seed), correlation), 31) < 0.05 for seed in range(runs)
    )
    assert scipy.stats.binomtest(found, runs, 0.05, alternative="greater").pvalue > 0.01


def test_channels_that_share_all_of_their_error_are_one_reading():
    """Student's t with 31 degrees, whatever the number of channels."""
    values, without = replicates(np.random.default_rng(1), 1.0, channels=7)
    error = np.sqrt(31 / 32 * ((without[:, 0] - without[:, 0].mean()) ** 2).sum())
    assert scatter_p_value(values, without, 31) == pytest.approx(
        2 * scipy.stats.t.sf(abs(values[0]) / error, 31), rel=0.1
    )


def test_a_scatter_of_three_errors_is_more_than_chance():
    values, without = replicates(np.random.default_rng(0), 0.3)
    moved = values + 3 * np.resize([1.0, -1.0], 40) / np.sqrt(32)
    assert scatter_p_value(moved, without + moved - values, 31) < 1e-4


def test_where_a_sure_reading_begins_to_count():
    assert shrink(np.array([2.9e-4, 3.1e-4]), np.array([1e-5, 1e-5]), 0.0, scatters=False).tolist() == [0.0, 3.1e-4]
