"""Rounds what was computed in float64, once; refuses values that would not be finite, or lose their digits.

The distance of a rounded output from the reference: SNR = 10 log10(sum reference^2 / sum (output - reference)^2) dB.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .runtime import Array, Float64Array


class RoundingError(ArithmeticError):
    """Values that the type can't hold; the message names the first channel."""


DEAD = 2.0**-24  # of the largest weight of its tensor; what is smaller was below the last digit of float32 already
_SMALLEST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126}


def round_outputs(rows: Float64Array, dtype: npt.DTypeLike) -> Array:
    """Rounds a weight, its output channels first, shape (C_out, everything else).

    Raises:
        RoundingError: a value is not finite in `dtype`, or every value of a channel is below the normal range, where
            digits are lost; not so of a dead channel, which is nothing beside the others.
    """
    rounded = round_channels(rows, dtype, axis=0)
    smallest = _SMALLEST_NORMAL.get(np.dtype(dtype).name, 0.0)
    peaks = np.maximum(rows.max(axis=1, initial=0), -rows.min(axis=1, initial=0))  # no copy, as np.abs makes one
    lost = np.flatnonzero((peaks < smallest) & (peaks > DEAD * peaks.max(initial=0)))
    if lost.size:
        name, peak = np.dtype(dtype).name, peaks[lost[0]]
        raise RoundingError(f"channel {lost[0]} would lose its digits in {name}, its largest value is {peak:.3g}")
    return rounded


def round_channels(values: Float64Array, dtype: npt.DTypeLike, axis: int = -1, per: int = 1) -> Array:
    """Rounds to `dtype`.

    Args:
        values: any shape.
        dtype: the type of the result.
        axis: the axis that the channels of the message lie along.
        per: how many positions along `axis` make one channel.

    Raises:
        RoundingError: a value is not finite in `dtype`.
    """
    with np.errstate(all="ignore"):
        rounded = values.astype(dtype)
        finite = np.isfinite(rounded)
    if finite.all():
        return rounded
    rows = np.moveaxis(np.atleast_1d(finite), axis, 0)
    channel = int(np.flatnonzero(~rows.reshape(rows.shape[0], -1).all(axis=1))[0])
    bad = np.moveaxis(np.atleast_1d(rounded.astype(np.float64)), axis, 0)[channel]
    what = "be NaN in" if np.isnan(bad).any() else "overflow"
    raise RoundingError(f"channel {channel // per} would {what} {np.dtype(dtype).name}")


def snr_db(reference: Array, output: Array) -> float:
    """The signal to noise ratio over all elements, in float64 and in dB.

    Args:
        reference: finite.
        output: of the same shape.

    Returns:
        inf where both are equal; -inf where the output is not finite, or the reference is 0 and the output is not.
    """
    reference = reference.astype(np.float64)
    difference = np.abs(output - reference)
    peak, noise_peak = float(np.abs(reference).max(initial=0)), float(difference.max(initial=0))
    if noise_peak == 0:
        return math.inf
    if peak == 0 or not math.isfinite(noise_peak):
        return -math.inf
    # Each is scaled by its peak, so that no square leaves float64.
    signal, noise = float(np.sum((reference / peak) ** 2)), float(np.sum((difference / noise_peak) ** 2))
    return 10 * (math.log10(signal) - math.log10(noise)) + 20 * (math.log10(peak) - math.log10(noise_peak))
