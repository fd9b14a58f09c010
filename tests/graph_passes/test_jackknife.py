from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from vsfix.graph_passes.jackknife import standard_error, student_t


def test_the_jackknife_of_a_mean_is_its_textbook_error():
    x = np.random.default_rng(0).normal(size=(20, 3))
    without = (x.sum(axis=0) - x) / 19
    np.testing.assert_allclose(standard_error(without), x.std(axis=0, ddof=1) / np.sqrt(20), rtol=1e-12)


def test_the_spread_of_the_groups_without_the_factor_is_the_mistake_that_this_suite_sees():
    x = np.random.default_rng(0).normal(size=(20, 1))
    without = (x.sum(axis=0) - x) / 19
    assert without.std() < 0.3 * standard_error(without)[0]


@pytest.mark.parametrize("degrees", [3, 7, 15, 31])
def test_the_quantile_is_that_of_student(degrees):
    assert student_t(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=0.01)
