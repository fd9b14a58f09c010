"""Values rounded once to a narrower float type, and the values that a type can't hold.

Rounding is to nearest, ties to even. bfloat16 is reached from float64 through float32 rounded to odd (truncated, the
last bit set where anything was lost), so that both steps together round once: S. Boldo, G. Melquiond, "Emulation of FMA
and correctly rounded sums: proved algorithms using rounding to odd", IEEE Trans. Computers 57 (2008).

A *channel* of a weight is the part that makes one output channel. One that is smaller than the smallest normal number
of the type in every value has lost its digits, and the runtime may take it for zero: refused. Not so a dead channel,
2^24 times smaller than the largest weight of its tensor: it was below the last digit of float32 already.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.ir.element_types import BFLOAT16, FLOAT, FLOAT16, TYPE_NAMES
from vsfix.graph_passes.ir.rounding import DEAD
from vsfix.graph_passes.ir.runtime import Array, Float64Array

DTYPES: dict[int, npt.DTypeLike] = {FLOAT: np.float32, FLOAT16: np.float16, BFLOAT16: ml_dtypes.bfloat16}
# The largest finite and the smallest normal number.
LIMITS = {
    FLOAT: (float(np.finfo(np.float32).max), 2.0**-126),
    FLOAT16: (65504.0, 2.0**-14),
    BFLOAT16: ((2 - 2.0**-7) * 2.0**127, 2.0**-126),
}


@dataclass
class RoundingLoss:
    """The losses of rounding, over all tensors of a graph.

    Attributes:
        tensors: tensors that were rounded.
        values: values in them.
        zeros: values that were not zero and are now.
        subnormals: values that remain below the smallest normal number, with fewer digits.
        saturated: bounds, masks and paddings past the range that became the largest number.
        dead: channels that were dead before and vanished, as `TENSOR[CHANNEL]`.
    """

    tensors: int = 0
    values: int = 0
    zeros: int = 0
    subnormals: int = 0
    saturated: int = 0
    dead: tuple[str, ...] = ()


def round_to(values: Array, code: int) -> Array:
    """Rounds once, to nearest, ties to even; past the range it is infinity.

    Args:
        values: float64 or narrower.
        code: FLOAT, FLOAT16 or BFLOAT16.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if code == BFLOAT16 and values.dtype == np.float64:
            values = _round_to_odd(values)
        return np.asarray(values.astype(DTYPES[code]))


def round_weight(
    values: Array, code: int, name: str, axis: int | None, loss: RoundingLoss, *, channels: bool = True
) -> Array:
    """Rounds a weight and adds to `loss`.

    Args:
        values: the weight as stored, or in float64.
        code: the type to round to.
        name: of the tensor, for messages.
        axis: the axis of its output channels; None where it has none.
        loss: added to.
        channels: judge whole channels too; not for an addend, which may be as small as it likes.

    Raises:
        CheckFailedError: a value that is not finite or past the range, or a channel that would vanish; names both.
    """
    exact = np.asarray(values, dtype=np.float64)
    rounded = round_to(values, code)
    bad = ~np.isfinite(rounded.astype(np.float64))
    if bad.any():
        _refuse(exact, bad, code, name, axis)
    if channels and axis is not None:
        loss.dead += _vanishing_channels(exact, code, name, axis)
    _count(exact, rounded, code, loss)
    return rounded


def round_bound(values: Array, code: int, name: str, loss: RoundingLoss, *, saturate: bool) -> Array:
    """Rounds a constant that is no weight; infinities stay, they are exact.

    Args:
        values: as stored.
        code: the type to round to.
        name: of the tensor, for messages.
        loss: added to.
        saturate: a finite value past the range becomes the largest number, which does for a bound or a mask.

    Raises:
        CheckFailedError: NaN, or a finite value past the range where it may not saturate.
    """
    exact = np.asarray(values, dtype=np.float64)
    rounded = round_to(values, code)
    past = np.isfinite(exact) & ~np.isfinite(rounded.astype(np.float64))
    bad = np.isnan(exact) | (past & (not saturate))
    if bad.any():
        _refuse(exact, bad, code, name, None)
    largest = np.copysign(LIMITS[code][0], exact).astype(DTYPES[code])
    loss.saturated += int(past.sum())
    rounded = np.where(past, largest, rounded)
    _count(exact, rounded, code, loss)
    return rounded


def _count(exact: Float64Array, rounded: Array, code: int, loss: RoundingLoss) -> None:
    """Adds one tensor to the loss."""
    magnitude = np.abs(rounded.astype(np.float64))
    small = (exact != 0) & (magnitude < LIMITS[code][1])
    zeros = int((small & (magnitude == 0)).sum())
    loss.tensors += 1
    loss.values += exact.size
    loss.zeros += zeros
    loss.subnormals += int(small.sum()) - zeros


def _refuse(exact: Float64Array, bad: npt.NDArray[np.bool_], code: int, name: str, axis: int | None) -> None:
    """Says which value of which channel the type can't hold."""
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    where = f"channel {index[axis]}" if axis is not None and index else f"index {list(index)}"
    value, largest = float(exact[index]), LIMITS[code][0]
    why = f"past the {largest:.5g} of {TYPE_NAMES[code]}" if np.isfinite(value) else "not finite"
    raise CheckFailedError(f"{name}, {where}: {value:.4g} is {why}; nothing is written; {_advice(code)}")


def _vanishing_channels(exact: Float64Array, code: int, name: str, axis: int) -> tuple[str, ...]:
    """Refuses a channel whose every value is below the normal range; returns those that were dead before."""
    channels = np.moveaxis(np.abs(exact), axis, 0).reshape(exact.shape[axis], -1)  # (C, values)
    if not channels.size:
        return ()
    peaks = channels.max(axis=1)
    vanishing = np.flatnonzero((peaks > 0) & (peaks < LIMITS[code][1]))
    alive = vanishing[peaks[vanishing] > DEAD * peaks.max()]
    if alive.size:
        raise CheckFailedError(
            f"{name}, channel {alive[0]}: no value is larger than {peaks[alive[0]]:.4g}, below the "
            f"{LIMITS[code][1]:.4g} of {TYPE_NAMES[code]} at which digits are lost; nothing is written; {_advice(code)}"
        )
    return tuple(f"{name}[{channel}]" for channel in vanishing)


def _advice(code: int) -> str:
    """The remedy for a value that the type can't hold."""
    return "--precision bf16 has the range of float32" if code == FLOAT16 else "repair the weights, or keep float32"


def _round_to_odd(values: Float64Array) -> npt.NDArray[np.float32]:
    """float64 to float32, truncated, with the last bit set where anything was lost."""
    nearest = values.astype(np.float32)
    too_far = np.abs(nearest.astype(np.float64)) > np.abs(values)
    truncated = np.where(too_far, np.nextafter(nearest, np.float32(0)), nearest)
    inexact = np.isfinite(values) & (truncated.astype(np.float64) != values)
    bits = truncated.view(np.uint32) | inexact.astype(np.uint32)
    return np.asarray(bits.view(np.float32))
