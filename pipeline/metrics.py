"""How far one set of outputs is from another: numbers, and the decisions that follow from them. No model is run here.

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
from vsfix.graph_passes.inference import Array, Float64Array

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class TensorComparison:
    """The difference of two tensors of one shape, N samples first.

    Attributes:
        max_abs: the largest |d|.
        mean_abs: the mean |d|.
        p999_abs: the 99.9th percentile of |d|, linearly interpolated.
        max_rel: the largest |d| over the largest |reference|.
        snr_db: signal to noise ratio in dB; infinite where both are equal.
        cosine_min: the smallest cosine of a sample; NaN where the output is not finite.
        cosine_mean: the mean over the samples; NaN where the output is not finite.
        nan_count: NaNs in the output.
        inf_count: infinities in the output.
    """

    max_abs: float
    mean_abs: float
    p999_abs: float
    max_rel: float
    snr_db: float
    cosine_min: float
    cosine_mean: float
    nan_count: int
    inf_count: int

    @property
    def finite(self) -> bool:
        """Whether the output holds neither NaN nor infinity."""
        return self.nan_count == 0 and self.inf_count == 0


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


@dataclass(frozen=True)
class Decisions:
    """What two models decide on the same samples by their largest logit; the first one where several are equal.

    Attributes:
        samples: N.
        agreement: the share of samples on which both decide the same.
        flips: the number of samples on which they don't.
        reference_accuracy: None without labels.
        output_accuracy: None without labels.
        good_to_bad: flips from the right class to a wrong one; None without labels.
        bad_to_good: flips from a wrong class to the right one; None without labels.
    """

    samples: int
    agreement: float
    flips: int
    reference_accuracy: Proportion | None = None
    output_accuracy: Proportion | None = None
    good_to_bad: int | None = None
    bad_to_good: int | None = None


def compare_tensors(reference: Array, output: Array) -> TensorComparison:
    """Compares two tensors.

    Args:
        reference: shape (N, ...), finite.
        output: of the same shape.

    Raises:
        DataError: nothing to compare, different shapes, no numbers, or a reference that is not finite.
    """
    expected, found = _as_float64(reference, "the reference"), _as_float64(output, "the output")
    if expected.shape != found.shape:
        raise DataError(f"the reference has the shape {expected.shape}, the output {found.shape}; nothing to compare")
    if expected.size == 0:
        raise DataError(f"tensors of shape {expected.shape} hold no value; there is nothing to compare")
    bad = np.flatnonzero(~_finite_rows(expected))
    if bad.size:
        raise DataError(f"the reference is not finite in sample {bad[0]}; nothing can be compared with it")
    nan_count, inf_count = int(np.isnan(found).sum()), int(np.isinf(found).sum())
    if nan_count or inf_count:
        infinite = math.inf
        return TensorComparison(
            infinite, infinite, infinite, infinite, -infinite, math.nan, math.nan, nan_count, inf_count
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


def compare_decisions(reference: Array, output: Array, labels: Array | None = None) -> Decisions:
    """Compares the top-1 decisions of two models.

    A sample whose output is not finite counts as a flip and as a wrong answer.

    Args:
        reference: logits, shape (N, classes) with at least two classes, finite.
        output: logits of the same shape.
        labels: the right class of each sample, whole numbers of shape (N,); optional.

    Raises:
        DataError: nothing to compare, other shapes, or labels that name no class.
    """
    expected, found = _as_float64(reference, "the reference"), _as_float64(output, "the output")
    if expected.shape != found.shape or expected.ndim != 2 or len(expected) == 0 or expected.shape[1] < 2:
        raise DataError(
            f"logits of shape {expected.shape} and {found.shape}; decisions need (N, classes) twice, N of at least 1 "
            "and at least 2 classes"
        )
    bad = np.flatnonzero(~_finite_rows(expected))
    if bad.size:
        raise DataError(f"the reference is not finite in sample {bad[0]}; it decides nothing there")
    first = expected.argmax(axis=1)
    # -1 is no class: it agrees with nothing.
    second = np.where(_finite_rows(found), np.nan_to_num(found).argmax(axis=1), -1)
    flips = int(np.sum(first != second))
    n = len(expected)
    if labels is None:
        return Decisions(n, (n - flips) / n, flips)
    classes = _check_labels(labels, n, expected.shape[1])
    before, after = first == classes, second == classes
    return Decisions(
        samples=n,
        agreement=(n - flips) / n,
        flips=flips,
        reference_accuracy=proportion(int(before.sum()), n),
        output_accuracy=proportion(int(after.sum()), n),
        good_to_bad=int(np.sum(before & ~after)),
        bad_to_good=int(np.sum(~before & after)),
    )


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


def _compare_finite(reference: Float64Array, output: Float64Array) -> TensorComparison:
    """The comparison of two finite arrays."""
    difference = np.abs(output - reference)
    peak = float(np.abs(reference).max())
    max_abs = float(difference.max())
    cosines = _cosines(reference, output)
    return TensorComparison(
        max_abs=max_abs,
        mean_abs=float(difference.mean()),
        p999_abs=float(np.quantile(difference, 0.999)),
        max_rel=_ratio(max_abs, peak),
        snr_db=_snr_db(reference, difference),
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        nan_count=0,
        inf_count=0,
    )


def _snr_db(reference: Float64Array, difference: Float64Array) -> float:
    """10 log10(sum reference^2 / sum difference^2), each scaled by its peak so that no square leaves float64."""
    peak, noise_peak = float(np.abs(reference).max()), float(difference.max())
    if noise_peak == 0:
        return math.inf
    if peak == 0:
        return -math.inf
    signal, noise = float(np.sum((reference / peak) ** 2)), float(np.sum((difference / noise_peak) ** 2))
    return 10 * (math.log10(signal) - math.log10(noise)) + 20 * (math.log10(peak) - math.log10(noise_peak))


def _cosines(reference: Float64Array, output: Float64Array) -> Float64Array:
    """One cosine for each sample; two vectors of zeros agree, one alone has no direction in common with anything."""
    a, b = _unit_rows(reference), _unit_rows(output)
    cosines = np.clip(np.sum(a * b, axis=1), -1.0, 1.0)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, cosines)


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


def _finite_rows(array: Float64Array) -> Array:
    """Which samples are finite, shape (N,)."""
    return np.asarray(np.isfinite(array).reshape(len(array), -1).all(axis=1))


def _as_float64(array: Array, what: str) -> Float64Array:
    """A float64 copy of real numbers with a batch axis."""
    if array.dtype.kind not in "fiub":
        raise DataError(f"{what} holds {array.dtype}; only real numbers can be compared")
    if array.ndim == 0:
        raise DataError(f"{what} is a single number without a batch axis; (N, ...) is needed")
    return array.astype(np.float64)


def _check_labels(labels: Array, samples: int, classes: int) -> Array:
    """The labels, when each names a class."""
    if labels.shape != (samples,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels are {labels.dtype} of shape {labels.shape}; whole numbers of shape ({samples},) needed"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        raise DataError(f"the label of sample {bad[0]} is {labels[bad[0]]}, but there are {classes} classes from 0 on")
    return labels
