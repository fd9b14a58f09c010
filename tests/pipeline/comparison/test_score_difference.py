from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from vsfix.pipeline.comparison.metric import Metric
from vsfix.pipeline.comparison.score_difference import (
    compare_scores,
    gain_interval,
    is_better,
    is_worse,
    paired_p_value,
    score_of,
)


def test_decisions_are_paired_by_mcnemar():
    before, after = np.zeros(40), np.zeros(40)
    before[:2], after[2:14] = 1, 1
    assert paired_p_value(before, after) == pytest.approx(scipy.stats.binomtest(2, 14).pvalue)
    assert is_better(before, after)
    assert not is_worse(before, after)
    found = compare_scores(Metric("top1", "y", "labels"), before, after)
    assert (found.before, found.after, found.gain) == pytest.approx((5, 30, 25))
    assert found.arrow == "top-1 5.0 -> 30.0 %"
    assert "+25.00 percentage points (95 % interval" in found.details


def test_other_scores_are_paired_by_the_mean_of_their_differences():
    rng = np.random.default_rng(1)
    errors, found = -rng.random(400), -rng.random(400) - 0.1
    wanted = scipy.stats.ttest_rel(found, errors)
    assert paired_p_value(errors, found) == pytest.approx(2 * scipy.stats.norm.sf(abs(wanted.statistic)))
    np.testing.assert_allclose(gain_interval(errors, found), wanted.confidence_interval(0.95), atol=2e-3)
    assert is_worse(errors, found)
    compared = compare_scores(Metric("mse", "y", "labels"), errors, found)
    assert compared.is_worse
    assert compared.gain == pytest.approx(found.mean() - errors.mean())
    assert (compared.before, compared.after) == pytest.approx((-errors.mean(), -found.mean()))
    assert compared.details.startswith(f"{errors.mean() - found.mean():.4g} worse (95 % interval -")
    back, same = (compare_scores(Metric("mse", "y", "labels"), *pair) for pair in ((found, errors), (found, found)))
    assert back.details.startswith(f"{errors.mean() - found.mean():.4g} better (95 % interval +")
    assert same.details.startswith("no difference")


def test_a_change_of_a_rounding_is_neither_better_nor_worse():
    rng = np.random.default_rng(2)
    scores = -rng.random(300)
    for moved in (scores - 1e-9, scores + 1e-9):
        found = compare_scores(Metric("mse", "y", "labels"), scores, moved)
        assert found.p_value < 0.05
        assert not found.is_worse
        assert not found.is_better


def test_a_model_that_is_not_finite_is_worse_than_one_that_is():
    scores = -np.arange(1.0, 41.0)
    broken = np.where(np.arange(40) == 7, -np.inf, scores)
    assert compare_scores(Metric("mse", "y", "labels"), scores, broken).is_worse
    assert gain_interval(scores, broken) == (-np.inf, np.inf)


def test_a_metric_that_is_not_finite_is_said_in_words():
    metric, broken = Metric("mse", "y", "labels"), np.full(40, -np.inf)
    assert score_of(metric, broken).text() == "mean squared error not finite"
    assert compare_scores(metric, np.full(40, -0.5), broken).arrow == "mean squared error 0.5 -> not finite"


def test_of_two_models_that_are_not_finite_everywhere_the_other_samples_tell():
    scores = np.where(np.arange(40) == 7, -np.inf, -np.arange(1.0, 41.0))
    metric = Metric("mse", "y", "labels")
    for worse in (np.full(40, -np.inf), scores - 5, np.where(np.arange(40) == 8, -np.inf, scores)):
        assert compare_scores(metric, scores, worse).is_worse
        assert is_worse(scores, worse)
        assert compare_scores(metric, worse, scores).is_better
    assert compare_scores(metric, scores, scores - 5).gain == pytest.approx(-5)
    assert not compare_scores(metric, scores, scores).is_worse
    assert metric.kept(-np.inf, -np.inf) < 0  # nothing is known to be kept


def test_the_same_scores_are_no_difference_and_the_order_of_samples_is_none():
    rng = np.random.default_rng(3)
    before, after = rng.normal(size=50), rng.normal(size=50)
    assert paired_p_value(before, before) == 1
    order = rng.permutation(50)
    assert gain_interval(before[order], after[order]) == pytest.approx(gain_interval(before, after))
    assert paired_p_value(before[:7], before[:7] + 1) == 1  # a handful tells nothing


def test_a_handful_of_scores_tells_nothing():
    for count in (1, 2, 7):
        assert paired_p_value(np.zeros(count), np.full(count, 0.5)) == 1.0
    assert paired_p_value(np.zeros(8), np.full(8, 0.5)) == pytest.approx(2 / 2**8)
    rng = np.random.default_rng(3)  # under the hypothesis it is uniform
    found = [paired_p_value(np.zeros(20), rng.normal(size=20)) for _ in range(300)]
    assert np.mean(np.less(found, 0.05)) == pytest.approx(0.05, abs=0.04)


def test_the_interval_of_the_gain_covers_in_95_of_100():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        errors = rng.normal(size=(2, 100))
        low, high = gain_interval(-(errors[0] ** 2), -((0.6 * errors[0] + 0.9 * errors[1]) ** 2))
        covered += low < 1 - (0.36 + 0.81) < high
    assert 0.92 < covered / 400 < 0.98
