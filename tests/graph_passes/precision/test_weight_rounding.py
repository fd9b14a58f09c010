"""Rounding against exact arithmetic on fractions."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.ir.element_types import BFLOAT16, FLOAT, FLOAT16
from vsfix.graph_passes.precision.weight_rounding import DTYPES, LIMITS, RoundingLoss, round_to, round_weight

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


def test_a_value_just_short_of_a_tie_is_not_rounded_twice():
    value = np.array([1 + 3 * 2.0**-8 - 2.0**-40])  # through float32 it would become the tie, and then 1 + 2^-6
    for sign in (1, -1):
        assert sign * round_to(sign * value, BFLOAT16).astype(np.float64) == 1 + 2.0**-7
    assert nearest(float(value[0]), BFLOAT16) == 1 + 2.0**-7


@pytest.mark.parametrize("code", [FLOAT16, BFLOAT16])
def test_the_smallest_normal_number_is_no_loss(code):
    loss, smallest = RoundingLoss(), LIMITS[code][1]
    round_weight(np.array([[1.0, 0.0], [smallest, -smallest]]), code, "w", 0, loss)
    assert (loss.zeros, loss.subnormals, loss.dead) == (0, 0, ())


@pytest.mark.parametrize("code", DIGITS)
def test_the_limits_are_those_of_the_types(code):
    largest, normal = LIMITS[code]
    info = ml_dtypes.finfo(DTYPES[code])
    assert (largest, normal) == (float(info.max), float(info.smallest_normal))


def test_losses_are_counted():
    loss = RoundingLoss()
    round_weight(np.array([[1, 1e-5, 1e-9, 0], [2, 3, 4, 5]]), FLOAT16, "w", 0, loss)
    assert (loss.tensors, loss.values, loss.zeros, loss.subnormals) == (1, 8, 1, 1)


@pytest.mark.parametrize(("peak", "refused"), [(2.0**-14, False), (2.0**-14 * (1 - 2.0**-11), True)])
def test_a_channel_is_refused_below_the_smallest_normal_number_and_not_at_it(peak, refused):
    weight = np.array([[1.0, 0.5], [peak / 2, -peak]])
    if not refused:
        round_weight(weight, FLOAT16, "w", 0, RoundingLoss())
        return
    with pytest.raises(CheckFailedError, match="w, channel 1: no value is larger than"):
        round_weight(weight, FLOAT16, "w", 0, RoundingLoss())
