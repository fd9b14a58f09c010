"""How far one tensor is from another, in numbers. No model is run here.

    d = output - reference
    SNR = 10 log10(sum reference^2 / sum d^2) dB, over all samples together
    max_rel = max |d| / max |reference|
    cosine = <reference, output> / (|reference| |output|), for each sample

Everything is computed in float64. An output that is not finite has infinite errors, an SNR of minus infinity and no
cosine: it passes no threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.ir.rounding import snr_db
from vsfix.graph_passes.ir.runtime import Array, Float64Array


@dataclass(frozen=True)
class TensorComparison:
    """The difference of two tensors of one shape, N samples first.

    Attributes:
        max_abs: the largest |d|.
        mean_abs: the mean |d|.
        p999_abs: the 99.9th percentile of |d|, linearly interpolated.
        max_rel: the largest |d| over the largest |reference|.
        p999_rel: the 99.9th percentile of |d| over the largest |reference|.
        snr_db: signal to noise ratio in dB; infinite where both are equal.
        cosine_min: the smallest cosine of a sample; NaN where the output is not finite, and where a sample is one
            number, whose cosine is its sign alone.
        cosine_mean: the mean over the samples; NaN likewise.
        nan_count: NaNs in the output.
        inf_count: infinities in the output.
    """

    max_abs: float
    mean_abs: float
    p999_abs: float
    max_rel: float
    p999_rel: float
    snr_db: float
    cosine_min: float
    cosine_mean: float
    nan_count: int
    inf_count: int

    @property
    def finite(self) -> bool:
        """Whether the output holds neither NaN nor infinity."""
        return self.nan_count == 0 and self.inf_count == 0


def compare_tensors(reference: Array, output: Array) -> TensorComparison:
    """Compares two tensors.

    Args:
        reference: shape (N, ...), finite.
        output: of the same shape.

    Raises:
        DataError: nothing to compare, different shapes, no numbers, or a reference that is not finite.
    """
    expected, found = as_float64(reference, "the reference"), as_float64(output, "the output")
    if expected.shape != found.shape:
        raise DataError(f"the reference has the shape {expected.shape}, the output {found.shape}; nothing to compare")
    if expected.size == 0:
        raise DataError(f"tensors of shape {expected.shape} hold no value; there is nothing to compare")
    bad = np.flatnonzero(~finite_rows(expected))
    if bad.size:
        raise DataError(f"the reference is not finite in sample {bad[0]}; nothing can be compared with it")
    nan_count, inf_count = int(np.isnan(found).sum()), int(np.isinf(found).sum())
    if nan_count or inf_count:
        infinite = math.inf
        return TensorComparison(
            *(infinite,) * 5, -infinite, math.nan, math.nan, nan_count=nan_count, inf_count=inf_count
        )
    return _compare_finite(expected, found)


def comparable(expected: Array, found: Array) -> tuple[Array, Array]:
    """Both with a batch axis; where both hold the same infinity or NaN, there is nothing to compare.

    Args:
        expected: of any shape.
        found: the same output of another model.
    """
    expected, found = np.atleast_1d(expected), np.atleast_1d(found)
    if expected.dtype.kind != "f" or expected.shape != found.shape:
        return expected, found
    same = ~np.isfinite(expected) & ((expected == found) | (np.isnan(expected) & np.isnan(found)))
    return np.where(same, 0, expected), np.where(same, 0, found)


def _compare_finite(reference: Float64Array, output: Float64Array) -> TensorComparison:
    """The comparison of two finite arrays."""
    difference = np.abs(output - reference)
    peak = float(np.abs(reference).max())
    max_abs, p999_abs = float(difference.max()), float(np.quantile(difference, 0.999))
    angles = cosines(reference, output) if reference[0].size > 1 else np.array(math.nan)
    return TensorComparison(
        max_abs=max_abs,
        mean_abs=float(difference.mean()),
        p999_abs=p999_abs,
        max_rel=_ratio(max_abs, peak),
        p999_rel=_ratio(p999_abs, peak),
        snr_db=snr_db(reference, output),
        cosine_min=float(angles.min()),
        cosine_mean=float(angles.mean()),
        nan_count=0,
        inf_count=0,
    )


def cosines(reference: Float64Array, output: Float64Array) -> Float64Array:
    """One cosine for each sample; two vectors of zeros agree, one alone has no direction in common with anything."""
    a, b = _unit_rows(reference), _unit_rows(output)
    angles = np.clip(np.sum(a * b, axis=1), -1.0, 1.0)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, angles)


def _unit_rows(array: Float64Array) -> Float64Array:
    """The samples as vectors of length 1, shape (N, values); a vector of zeros stays one."""
    rows = array.reshape(len(array), -1)
    peak = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(peak > 0, peak, 1.0)
    length = np.sqrt(np.sum(rows**2, axis=1, keepdims=True))
    return np.asarray(rows / np.where(length > 0, length, 1.0), dtype=np.float64)


def _ratio(numerator: float, denominator: float) -> float:
    """A quotient in which 0 / 0 is no error at all."""
    if numerator == 0:
        return 0.0
    return numerator / denominator if denominator > 0 else math.inf


def finite_rows(array: Float64Array) -> Array:
    """Which samples are finite, shape (N,)."""
    return np.asarray(np.isfinite(array).reshape(len(array), -1).all(axis=1))


def as_float64(array: Array, what: str) -> Float64Array:
    """A float64 copy of real numbers with a batch axis."""
    # bfloat16 and the float8 types are of no kind that numpy names.
    if array.dtype.kind not in "fiub" and not (array.dtype.kind == "V" and np.can_cast(array.dtype, np.float64)):
        raise DataError(f"{what} holds {array.dtype}; only real numbers can be compared")
    if array.ndim == 0:
        raise DataError(f"{what} is a single number without a batch axis; (N, ...) is needed")
    return array.astype(np.float64)
