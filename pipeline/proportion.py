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
    spread = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At the ends the two terms cancel to a rounding error, where the exact value is 0 or 1.
    low = 0.0 if count == 0 else (centre - spread) / scale
    high = 1.0 if count == total else (centre + spread) / scale
    return low, high


def mcnemar_p_value(good_to_bad: int, bad_to_good: int) -> float:
    """The probability of flips at least as lopsided as these where both models are equally good.

    Exact and two-sided: under that hypothesis each flip is a fair coin, so that with n flips, m of the rarer kind,
    p = min(1, 2 sum_{i <= m} C(n, i) / 2^n). Source: McNemar, Psychometrika 12 (1947), in its exact form.

    Args:
        good_to_bad: samples that only the first model gets right.
        bad_to_good: samples that only the second model gets right.

    Raises:
        DataError: a negative count.
    """
    if min(good_to_bad, bad_to_good) < 0:
        raise DataError(f"{good_to_bad} and {bad_to_good} flips: a count can't be negative")
    n, rarer = good_to_bad + bad_to_good, min(good_to_bad, bad_to_good)
    term, tail = 1, 1  # C(n, i) and its sum, in whole numbers: 2^n leaves float64 at a thousand flips
    for i in range(rarer):
        term = term * (n - i) // (i + 1)
        tail += term
    return float(min(Fraction(1), Fraction(2 * tail, 2**n)))
