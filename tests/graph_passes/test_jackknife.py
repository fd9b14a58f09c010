from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from vsfix.graph_passes.jackknife import standard_error, student_t, unbiased


def test_the_jackknife_of_a_mean_is_its_textbook_error():
    x = np.random.default_rng(0).normal(size=(20, 3))
    without = (x.sum(axis=0) - x) / 19
    np.testing.assert_allclose(standard_error(without), x.std(axis=0, ddof=1) / np.sqrt(20), rtol=1e-12)


def test_the_spread_of_the_groups_without_the_factor_is_the_mistake_that_this_suite_sees():
    x = np.random.default_rng(0).normal(size=(20, 1))
    without = (x.sum(axis=0) - x) / 19
    assert without.std() < 0.3 * standard_error(without)[0]


def test_the_correction_turns_the_biased_variance_into_the_unbiased_one():
    """A textbook law: the bias of the variance is of first order only, so nothing of it is left."""
    x = np.random.default_rng(0).normal(size=(9, 4))
    without = np.stack([np.delete(x, i, axis=0).var(axis=0) for i in range(9)])
    np.testing.assert_allclose(unbiased(x.var(axis=0), without), x.var(axis=0, ddof=1), rtol=1e-12)


def test_the_correction_leaves_a_mean_alone():
    x = np.random.default_rng(0).normal(size=(9, 4))
    without = (x.sum(axis=0) - x) / 8
    np.testing.assert_allclose(unbiased(x.mean(axis=0), without), x.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize(("degrees", "error"), [(3, 1.3e-3), (4, 3.2e-4), (7, 2.1e-5), (15, 5e-7), (31, 1.3e-8)])
def test_the_quantile_is_that_of_student(degrees, error):
    """The tolerance is the error of the expansion: one term that is wrong is more."""
    assert student_t(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=error)
