"""Rounds what was computed in float64, once, and refuses what would not be finite afterwards."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .inference import Array, Float64Array


class RoundingError(ArithmeticError):
    """Values that the type can't hold; the message names the first channel."""


def round_channels(values: Float64Array, dtype: npt.DTypeLike, axis: int = -1, per: int = 1) -> Array:
    """Rounds to `dtype`.

    Args:
        values: any shape.
        dtype: the type of the result.
        axis: the axis that the channels of the message lie along.
        per: how many places along `axis` make one channel.

    Raises:
        RoundingError: a value is not finite in `dtype`.
    """
    with np.errstate(all="ignore"):
        rounded = values.astype(dtype)
        finite = np.isfinite(rounded.astype(np.float64))
    if finite.all():
        return rounded
    rows = np.moveaxis(np.atleast_1d(finite), axis, 0)
    channel = int(np.flatnonzero(~rows.reshape(rows.shape[0], -1).all(axis=1))[0])
    bad = np.moveaxis(np.atleast_1d(rounded.astype(np.float64)), axis, 0)[channel]
    what = "be NaN in" if np.isnan(bad).any() else "overflow"
    raise RoundingError(f"channel {channel // per} would {what} {np.dtype(dtype).name}")
