"""Shares of right answers: their intervals, and whether two models differ by more than chance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from vsfix.graph_passes.errors import DataError

Z_95 = 1.959963984540054
SIGNIFICANT = 0.05  # McNemar's p below this is more than chance


@dataclass(frozen=True)
class Proportion:
    """A share of right answers.

    Attributes:
        count: right answers.
        total: answers.
        value: count / total.
        low: lower end of the 95 % Wilson interval.
        high: upper end.
    """

    count: int
    total: int
    value: float
    low: float
    high: float


def proportion(count: int, total: int) -> Proportion:
    """A share with its Wilson interval.

    Raises:
        DataError: see `wilson_interval`.
    """
    low, high = wilson_interval(count, total)
    return Proportion(count, total, count / total, low, high)


def wilson_interval(count: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a share.

        (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n)        p = count/n, n = total

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Args:
        count: successes, from 0 to total.
        total: trials, at least 1.
        z: the quantile of the normal distribution; 1.96 for 95 %.

    Returns:
        (low, high) within [0, 1].

    Raises:
        DataError: no trials, or a count that is none of them.
    """
    if total < 1 or not 0 <= count <= total:
        raise DataError(f"{count} of {total}: a share needs at least one trial and a count among them")
    p = count / total
    centre = p + z * z / (2 * total)
    half_width = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At the ends the two terms cancel to a rounding error, where the exact value is 0 or 1.
    low = 0.0 if count == 0 else (centre - half_width) / scale
    high = 1.0 if count == total else (centre + half_width) / scale
    return low, high


def mcnemar_p_value(good_to_bad: int, bad_to_good: int) -> float:
    """The probability of regressions and fixes at least as lopsided as these where both models are equally good.

    Exact and two-sided: under that hypothesis each of them is a fair coin, so that with n of them, m of the rarer kind,
    p = min(1, 2 sum_{i <= m} C(n, i) / 2^n). Source: McNemar, Psychometrika 12 (1947), in its exact form.

    Args:
        good_to_bad: samples that only the first model gets right.
        bad_to_good: samples that only the second model gets right.

    Raises:
        DataError: a negative count.
    """
    if min(good_to_bad, bad_to_good) < 0:
        raise DataError(f"{good_to_bad} and {bad_to_good} changed decisions: a count can't be negative")
    n, rarer = good_to_bad + bad_to_good, min(good_to_bad, bad_to_good)
    term, tail = 1, 1  # C(n, i) and its sum, in whole numbers: 2^n leaves float64 at n of a thousand
    for i in range(rarer):
        term = term * (n - i) // (i + 1)
        tail += term
    return float(min(Fraction(1), Fraction(2 * tail, 2**n)))


def paired_difference_interval(both: int, only_first: int, only_second: int, total: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two shares on the same samples, second less first.

    From the Wilson intervals (l, u) of the two, with their correlation phi:

        d -+ sqrt(a^2 - 2 phi a b + b^2)        below: a = p2 - l2, b = u1 - p1; above: a = u2 - p2, b = p1 - l1
        phi = max(0, wx - yz - total/2 where wx > yz) / sqrt(margins)        w, x, y, z the four cells

    Source: Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
    data", Statistics in Medicine 17 (1998), method 10.

    Args:
        both: samples that both models get right.
        only_first: that only the first does.
        only_second: that only the second does.
        total: all samples.

    Returns:
        (low, high) within [-1, 1].

    Raises:
        DataError: counts that are none of `total`.
    """
    neither = total - both - only_first - only_second
    if min(both, only_first, only_second, neither) < 0:
        raise DataError(f"{both}, {only_first} and {only_second} of {total}: these can't be counts of the same samples")
    first, second = proportion(both + only_first, total), proportion(both + only_second, total)
    phi = _correlation(both, only_first, only_second, neither)
    below = _join(second.value - second.low, first.high - first.value, phi)
    above = _join(second.high - second.value, first.value - first.low, phi)
    difference = (only_second - only_first) / total
    return max(-1.0, difference - below), min(1.0, difference + above)


def _join(a: float, b: float, phi: float) -> float:
    """sqrt(a^2 - 2 phi a b + b^2), where rounding may leave less than 0."""
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """phi of the four cells, with a continuity correction where it is positive; 0 where a margin is empty."""
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if margins == 0:
        return 0.0
    cross = both * neither - only_first * only_second
    total = both + only_first + only_second + neither
    return float(max(0.0, cross - total / 2) if cross > 0 else cross) / math.sqrt(margins)
