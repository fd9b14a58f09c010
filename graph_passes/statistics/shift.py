"""The shift of a BatchNorm: the variance of its input at inference over the variance that it stores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.noise.noise import Noise

from .moments import Moments


def shift_ratio(stored: BatchNorm, real: Moments) -> Float64Array:
    """Real over stored variance, shape (C,); 1 is no shift. Channels that store no variance, or have none, give NaN.

    Of a module that is used several times the real variance is that of `Moments.as_stored`, the one nearer to what is
    stored.
    """
    ratio = np.full(stored.channels, np.nan)
    variance = real.as_stored(stored.variance).variance
    valid = (stored.variance > 0) & (variance > np.finfo(np.float32).tiny)
    np.divide(variance, stored.variance, out=ratio, where=valid)
    return ratio


def predicted_shift_ratio(stored: BatchNorm, noise_variance: float) -> Float64Array:
    """The shift of a BatchNorm directly downstream of noise, from its stored statistics alone.

    With E n = 1 and Var n = s2 the stored second moment is (1 + s2) E[x^2], so the variance at inference is
    v = (var + mean^2) / (1 + s2) - mean^2; for Dropout that is p (var + mean^2) - mean^2.

    Args:
        stored: the BatchNorm.
        noise_variance: s2.

    Returns:
        v / var, shape (C,); NaN where the stored statistics contradict the noise (v would be negative).
    """
    with np.errstate(all="ignore"):
        v = (stored.variance + stored.mean**2) / (1 + noise_variance) - stored.mean**2
        return np.where((v > 0) & (stored.variance > 0), v / stored.variance, np.nan)


def joint_variance(noises: Sequence[Noise]) -> float:
    """Var n of several independent noises on one element: the product of (1 + s2), minus 1; NaN if one has no s2."""
    return float(np.prod([1 + noise.variance for noise in noises])) - 1


def geometric_mean(ratios: Float64Array) -> float:
    """The geometric mean of positive ratios of any shape, NaN left out; NaN where nothing is left."""
    valid = ratios[np.isfinite(ratios) & (ratios > 0)]
    return float(np.exp(np.log(valid).mean())) if valid.size else float("nan")


def variance_ratio(ratios: Float64Array) -> float:
    """The variance ratio of stored and real, the larger over the smaller; 1 is a perfect match.

    The figure that the paper draws for each layer, max(moving_var / real_var, real_var / moving_var), here as the
    geometric mean over the channels.
    """
    return geometric_mean(np.maximum(ratios, 1 / ratios))
