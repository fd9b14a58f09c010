from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from vsfix.graph_passes.statistics.jackknife import effective_degrees, f_tail, standard_error, student_t, unbiased


def test_the_jackknife_of_a_mean_is_its_textbook_error():
    x = np.random.default_rng(0).normal(size=(20, 3))
    without = (x.sum(axis=0) - x) / 19
    np.testing.assert_allclose(standard_error(without), x.std(axis=0, ddof=1) / np.sqrt(20), rtol=1e-12)


def test_the_scatter_of_the_groups_without_the_factor_is_the_mistake_that_this_suite_sees():
    x = np.random.default_rng(0).normal(size=(20, 1))
    without = (x.sum(axis=0) - x) / 19
    assert without.std() < 0.3 * standard_error(without)[0]


def test_the_correction_turns_the_biased_variance_into_the_unbiased_one():
    """A textbook law: the bias of the variance is of first order only, so nothing of it is left."""
    x = np.random.default_rng(0).normal(size=(9, 4))
    without = np.stack([np.delete(x, i, axis=0).var(axis=0) for i in range(9)])
    np.testing.assert_allclose(unbiased(x.var(axis=0), without), x.var(axis=0, ddof=1), rtol=1e-12)


def test_the_correction_does_not_change_a_mean():
    x = np.random.default_rng(0).normal(size=(9, 4))
    without = (x.sum(axis=0) - x) / 8
    np.testing.assert_allclose(unbiased(x.mean(axis=0), without), x.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("level", [0.05, 0.05 / 3, 0.001])
@pytest.mark.parametrize("degrees", [3, 4.7, 15, 31, 400])
def test_the_quantile_is_that_of_student(degrees, level):
    assert student_t(degrees, level) == pytest.approx(scipy.stats.t.ppf(1 - level / 2, degrees), rel=1e-9)


@pytest.mark.parametrize("degrees", [(1, 3), (2.5, 7.3), (31, 31), (400, 12.5), (700, 300)])
@pytest.mark.parametrize("f", [1e-3, 0.7, 1.0, 1.9, 8.0, 300.0])
def test_the_tail_is_that_of_fisher(f, degrees):
    assert f_tail(f, *degrees) == pytest.approx(scipy.stats.f.sf(f, *degrees), rel=1e-8, abs=1e-14)


def test_equal_groups_count_in_full_and_a_few_large_ones_as_few():
    rng = np.random.default_rng(0)
    u = rng.normal(size=(32, 400))
    assert effective_degrees(u) == pytest.approx(31, abs=1)
    u[4:] *= 0.01
    assert effective_degrees(u) == pytest.approx(3.5, abs=0.6)
    assert effective_degrees(np.zeros((32, 5))) == 31
