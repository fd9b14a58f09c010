"""Rounding against exact arithmetic on fractions."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from vsfix.graph_passes.element_types import BFLOAT16, FLOAT, FLOAT16
from vsfix.graph_passes.weight_rounding import DTYPES, LIMITS, RoundingLoss, round_to, round_weight

DIGITS = {FLOAT: 24, FLOAT16: 11, BFLOAT16: 8}
LOWEST = {FLOAT: -149, FLOAT16: -24, BFLOAT16: -133}


def nearest(value: float, code: int) -> float:
    """Round to nearest, ties to even, by exact fractions."""
    if value == 0:
        return value
    exponent = max(int(np.floor(np.log2(abs(value)))) - DIGITS[code] + 1, LOWEST[code])
    return float(round(Fraction(value) / Fraction(2) ** exponent) * Fraction(2) ** exponent)


@pytest.mark.parametrize("code", DIGITS)
def test_float64_is_rounded_once_to_nearest_even(code):
    rng = np.random.default_rng(0)
    values = rng.normal(size=300) * 10.0 ** rng.integers(-6, 4, 300)
    expected = np.array([nearest(value, code) for value in values])
    np.testing.assert_array_equal(round_to(values, code).astype(np.float64), expected)


def test_a_value_just_past_a_tie_is_not_rounded_twice():
    value = np.array([1 + 2.0**-8 + 2.0**-40])  # through float32 it would become the tie, and then 1
    assert round_to(value, BFLOAT16).astype(np.float64) == 1 + 2.0**-7 == nearest(float(value[0]), BFLOAT16)
    assert value.astype(ml_dtypes.bfloat16).astype(np.float64) == 1, "the planted mistake"


@pytest.mark.parametrize("code", DIGITS)
def test_the_limits_are_those_of_the_types(code):
    largest, normal = LIMITS[code]
    info = ml_dtypes.finfo(DTYPES[code])
    assert (largest, normal) == (float(info.max), float(info.smallest_normal))


def test_losses_are_counted():
    loss = RoundingLoss()
    round_weight(np.array([[1, 1e-5, 1e-9, 0], [2, 3, 4, 5]]), FLOAT16, "w", 0, loss)
    assert (loss.tensors, loss.values, loss.zeros, loss.subnormals) == (1, 8, 1, 1)
