from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy.stats import binomtest

from vsfix.graph_passes.errors import DataError
from vsfix.pipeline.comparison.proportion import (
    Proportion,
    mcnemar_p_value,
    paired_difference_interval,
    proportion,
    wilson_interval,
)


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


def test_at_the_ends_the_interval_ends_to_the_bit():
    for total in range(1, 300):
        assert wilson_interval(0, total)[0] == 0.0
        assert wilson_interval(total, total)[1] == 1.0


def test_a_proportion_is_its_share_between_the_ends_of_its_interval():
    low, high = wilson_interval(37, 50)
    assert proportion(37, 50) == Proportion(37, 50, value=0.74, low=low, high=high)
    assert low < 0.74 < high


@pytest.mark.parametrize(("count", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_no_trials_have_no_interval(count, total):
    with pytest.raises(DataError, match="at least one trial"):
        wilson_interval(count, total)


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (1, 0), (5, 5), (2, 9), (31, 12), (0, 40), (700, 800)])
def test_mcnemar_is_the_two_sided_binomial_test_of_a_fair_coin(worse, better):
    wanted = binomtest(worse, worse + better, 0.5).pvalue if worse + better else 1.0
    assert mcnemar_p_value(worse, better) == pytest.approx(wanted, rel=1e-9)
    assert mcnemar_p_value(better, worse) == mcnemar_p_value(worse, better)


def test_thousands_of_flips_stay_within_float64():
    assert mcnemar_p_value(5000, 5000) == 1
    assert 0 <= mcnemar_p_value(10, 9000) < 1e-300


def test_a_negative_count_of_flips_is_refused():
    with pytest.raises(DataError, match="negative"):
        mcnemar_p_value(-1, 3)


def tango(both, only_first, only_second, total):
    """The interval by an independent method: the score test of Tango (1998), inverted numerically."""
    b, c, n = only_second, only_first, total

    def score(d):
        a2, a1 = 2 * n, -b - c + (2 * n - b + c) * d
        q = (math.sqrt(max(0.0, a1 * a1 - 4 * a2 * (-c * d * (1 - d)))) - a1) / (2 * a2)
        variance = n * (2 * q + d * (1 - d))
        return (b - c - n * d) / math.sqrt(variance) if variance > 1e-15 else math.copysign(1e9, b - c - n * d)

    middle = (b - c) / n
    low = optimize.brentq(lambda d: score(d) - 1.959964, -1 + 1e-9, middle - 1e-9)
    high = optimize.brentq(lambda d: score(d) + 1.959964, middle + 1e-9, 1 - 1e-9)
    return low, high


@pytest.mark.parametrize(
    "cells", [(424, 4, 38, 500), (900, 30, 35, 1000), (7, 1, 9, 40), (200, 60, 10, 500), (3160, 433, 4735, 10000)]
)
def test_the_interval_of_a_paired_difference_is_near_that_of_another_method(cells):
    assert paired_difference_interval(*cells) == pytest.approx(tango(*cells), abs=0.5 / math.sqrt(cells[3]) / 4)


@given(st.lists(st.integers(0, 300), min_size=4, max_size=4).filter(any))
def test_the_interval_of_a_paired_difference_holds_it_and_turns_round_with_it(cells):
    both, first, second, _ = cells
    total = sum(cells)
    low, high = paired_difference_interval(both, first, second, total)
    assert -1 <= low <= (second - first) / total + 1e-12
    assert (second - first) / total - 1e-12 <= high <= 1
    turned = paired_difference_interval(both, second, first, total)
    assert turned == pytest.approx((-high, -low), abs=1e-12)


def test_the_interval_of_a_paired_difference_holds_the_truth_in_95_of_100_samples():
    rng = np.random.default_rng(1)
    both, first, second = rng.multinomial(300, [0.8, 0.03, 0.08, 0.09], size=2000).T[:3]
    held = [low <= 0.05 <= high for low, high in map(paired_difference_interval, both, first, second, [300] * 2000)]
    assert 0.94 < np.mean(held) < 0.975


def test_counts_that_are_not_of_the_same_samples_are_refused():
    with pytest.raises(DataError, match="can't be counts"):
        paired_difference_interval(5, 3, 3, 10)
