"""The uncertainty of an estimate, from the estimates without each group of samples in turn.

    se^2 = (G - 1) / G  sum_g (theta_(g) - theta_(.))^2          interval = theta -+ t_{G-1} se
    corrected theta = G theta - (G - 1) theta_(.)

Where a few groups carry most of the estimate (samples of high contrast) the error itself is as unsure as that of fewer
groups would be. For normal u_g = theta_(g) - theta_(.) the expression G_e is G, and it is less where they are unequal;
t then has G_e - 1 degrees of freedom, pooled over the channels:

    G_e = mean_c 3 (sum_g u_g^2)^2 / sum_g u_g^4 - 2, at most G

Sources: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11; matching the first two moments of a
variance by degrees of freedom is Satterthwaite, "An approximate distribution of estimates of variance components",
1946. The tail of Fisher's F is the incomplete beta function by its continued fraction (DLMF 8.17.22), and t^2 is F with
one degree above.
"""

from __future__ import annotations

import math

import numpy as np

from vsfix.graph_passes.ir.runtime import Float64Array

MIN_GROUPS = 4
LEVEL = 0.05  # what is said by chance alone is said no oftener
_FRACTION_TERMS = 500
_LARGEST_T = 1e6


def standard_error(without_each: Float64Array) -> Float64Array:
    """The standard error of an estimate.

    Args:
        without_each: the estimate without each group, shape (G, ...).

    Returns:
        Shape (...).
    """
    groups = len(without_each)
    squares = ((without_each - without_each.mean(axis=0)) ** 2).sum(axis=0)
    error: Float64Array = np.sqrt((groups - 1) / groups * squares)
    return error


def unbiased(estimate: Float64Array, without_each: Float64Array) -> Float64Array:
    """The estimate without its bias of first order.

    Args:
        estimate: from all groups, shape (...).
        without_each: the estimate without each group, shape (G, ...).
    """
    groups = len(without_each)
    corrected: Float64Array = groups * estimate - (groups - 1) * without_each.mean(axis=0)
    return corrected


def effective_degrees(without_each: Float64Array) -> float:
    """The degrees of freedom of the standard errors of several channels, from 3 to G - 1.

    Args:
        without_each: the estimates without each group, shape (G, C).
    """
    groups = len(without_each)
    u = without_each - without_each.mean(axis=0)
    squares, fourths = (u**2).sum(axis=0), (u**4).sum(axis=0)
    known = fourths > np.finfo(np.float64).tiny
    if not known.any():
        return float(groups - 1)
    effective = float(np.mean(3 * squares[known] ** 2 / fourths[known])) - 2
    return float(np.clip(effective, MIN_GROUPS, groups)) - 1


def student_t(degrees: float, level: float = LEVEL) -> float:
    """The quantile of Student's t beyond which, on either side, lies the probability `level`."""
    low, high = 0.0, 1.0
    while f_tail(high**2, 1, degrees) > level and high < _LARGEST_T:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f_tail(middle**2, 1, degrees) > level else (low, middle)
    return high


def f_tail(f: float, above: float, below: float) -> float:
    """The probability that Fisher's F is larger than `f`.

    Args:
        f: not negative.
        above: degrees of freedom of the numerator.
        below: degrees of freedom of the denominator.
    """
    return _incomplete_beta(below / (below + above * f), below / 2, above / 2)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised I_x(a, b), from whichever side the continued fraction converges fast."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    factor = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)  # Lentz's method
    value = d
    for m in range(1, _FRACTION_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(factor) * value / a
