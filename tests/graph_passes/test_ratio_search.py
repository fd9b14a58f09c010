"""The best ratio of curves whose minimum is known, with little and with much error in each half."""

from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.ratio_search import RatioCurve

BOUNDS = np.arange(0, 401, 20)  # twenty BatchNorms of ten channels


def make_curve(truth: float, error: float, seed: int = 0) -> tuple[RatioCurve, list[float]]:
    """Residuals that vanish at `truth` but for the errors of the halves, which grow with the ratio; what was asked."""
    rng = np.random.default_rng(seed)
    direction, errors = rng.normal(0, 1, 400), rng.normal(0, error, (2, 400))
    asked: list[float] = []

    def residuals(ratio: float) -> np.ndarray:
        asked.append(ratio)
        return direction * np.log((1 - truth) / (1 - ratio)) + errors * (1 + 3 * ratio)

    curve = RatioCurve(residuals, residuals(0.0))
    asked.clear()
    return curve, asked


@pytest.mark.parametrize("truth", [0.05, 0.2, 0.35, 0.5, 0.8])
@pytest.mark.parametrize("off", [0.75, 1.0, 1.15])
def test_the_minimum_is_found_from_a_rough_guess(truth, off):
    curve, asked = make_curve(truth, error=0.0)
    curve.refine(off * truth)
    assert curve.best_ratio == pytest.approx(truth, abs=0.004)
    assert len(asked) <= 6


def test_a_good_start_costs_no_more_than_five_measurements():
    curve, asked = make_curve(0.35, error=0.05)
    curve.refine(0.33)
    assert curve.best_ratio == pytest.approx(0.35, abs=0.02)
    assert len(asked) <= 5
    assert len(set(asked)) == len(asked)


def test_errors_that_grow_with_the_ratio_do_not_pull_it_down():
    found, pulled = [], []
    for seed in range(20):
        curve, _ = make_curve(0.5, error=0.4, seed=seed)
        curve.refine(0.5)
        found.append(curve.minimum())
        # The same search on what the whole set shows, which is the mistake: chance is part of what it minimises.
        whole = RatioCurve(lambda ratio, curve=curve: both_halves_alike(curve, ratio), both_halves_alike(curve, 0.0))
        whole.refine(0.5)
        pulled.append(whole.minimum())
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)
    assert np.mean(pulled) < 0.5 - 2 * abs(np.mean(found) - 0.5) - 0.02


def both_halves_alike(curve: RatioCurve, ratio: float) -> np.ndarray:
    measured = curve._measure(ratio)
    return np.stack([measured.mean(axis=0)] * 2)


def test_the_climb_ends_where_the_excess_rises():
    curve, asked = make_curve(0.2, error=0.0)
    curve.climb((0.1, 0.3, 0.5, 0.7))
    assert asked == [0.1, 0.3, pytest.approx(0.2, abs=0.02)]


def test_a_first_step_that_rises_does_not_end_the_climb():
    heights, asked = {0.0: 1.0, 0.1: 1.1, 0.3: 0.5, 0.5: 0.8}, []

    def residuals(ratio: float) -> np.ndarray:
        asked.append(ratio)
        return np.full((2, 1), heights[ratio])

    RatioCurve(residuals, np.ones((2, 1))).climb((0.1, 0.3, 0.5), beat=-1.0)
    assert asked == [0.1, 0.3, 0.5]


def test_an_interpolated_minimum_that_beats_nothing_is_not_measured():
    curve, asked = make_curve(0.2, error=0.0)
    curve.climb((0.1, 0.3, 0.5, 0.7), beat=-1.0)
    assert asked == [0.1, 0.3]


def test_the_interval_holds_the_truth_nearly_always():
    held = 0
    for seed in range(50):
        curve, _ = make_curve(0.3, error=0.4, seed=seed)
        curve.refine(0.3)
        low, high = curve.interval(BOUNDS)
        held += 0 <= low <= 0.3 <= high <= 1
        assert high - low < 0.3
    assert held >= 47


def test_the_interval_of_a_sure_thing_has_its_least_width():
    curve, _ = make_curve(0.3, error=0.0)
    curve.refine(0.3)
    assert curve.interval(BOUNDS) == pytest.approx((0.29, 0.31), abs=2e-3)


def test_the_halves_may_change_places():
    """A law: neither half is the first, in the minimum and in the interval."""
    curve, _ = make_curve(0.3, error=0.4)
    turned = RatioCurve(lambda ratio: curve._measure(ratio)[::-1], curve._measure(0.0)[::-1])
    for found in (curve, turned):
        found.refine(0.3)
    assert turned.minimum() == pytest.approx(curve.minimum(), rel=1e-12)
    assert turned.interval(BOUNDS) == pytest.approx(curve.interval(BOUNDS), rel=1e-9)
