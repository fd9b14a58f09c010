"""The evidence of a calibration set on one BatchNorm: the moves of its variance and its mean, and how sure they are.

    log ratio d = ln(Var_inference / Var_training)          var'  = var exp(d)
    mean move m = (Mean_inference - Mean_training) / sqrt(Var_training)      mean' = mean + m sqrt(var)

For re-estimation the training is what is stored; for the paired method it is the run with the noise on, and of a module
that is used several times its moments as the stored variance was made (`Moments.as_stored`). Each
is also known without each group of samples in turn, for the jackknife, which takes most of the bias out of d too: the
logarithm of a variance from n values lies about 1/n too low, in every channel alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm
from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.ir.runtime import Float64Array

from .jackknife import MIN_GROUPS, unbiased
from .moments import Moments

ROUNDING = 1e-9  # of the pooled variance: the remainder of a channel without the only group that it lives in


@dataclass(frozen=True)
class Evidence:
    """The moves of one BatchNorm.

    Attributes:
        log_ratio: d, shape (C,); 0 for an invalid channel.
        mean_move: m, shape (C,); 0 for an invalid channel.
        log_ratio_without: d without each group of samples, shape (G, C).
        mean_move_without: m without each group of samples, shape (G, C).
        valid: shape (C,), false for a channel without a measurable variance.
        bias: how far d may still be off in every channel alike, after the correction.
        samples: how many it rests on.
    """

    log_ratio: Float64Array
    mean_move: Float64Array
    log_ratio_without: Float64Array
    mean_move_without: Float64Array
    valid: npt.NDArray[np.bool_]
    samples: int
    bias: float = 0.0

    @classmethod
    def of_reestimation(cls, stored: BatchNorm, real: Moments) -> Evidence:
        """From the moments with the noise off against what is stored.

        Raises:
            DataError: too few samples.
        """
        _require_samples(stored, real)
        real_without = real.without_each_group()
        valid = ~real.degenerate & (stored.variance > 0) & _lasts(real_without[1], real.variance)
        log_ratio, move = _moves(real.mean, real.variance, stored.mean, stored.variance, valid)
        without = _moves(*real_without, stored.mean, stored.variance, valid)
        return cls(unbiased(log_ratio, without[0]), move, *without, valid, real.samples, bias=2 / real.count)

    @classmethod
    def of_pair(cls, stored: BatchNorm, on: Moments, off: Moments) -> Evidence:
        """From the moments of the same samples with the noise on and with the noise off.

        Raises:
            DataError: too few samples.
        """
        _require_samples(stored, off)
        trained = on.as_stored(stored.variance)
        on_without, off_without = trained.without_each_group(), off.without_each_group()
        lasts = _lasts(on_without[1], trained.variance) & _lasts(off_without[1], off.variance)
        valid = ~on.degenerate & ~off.degenerate & (stored.variance > 0) & lasts
        log_ratio, move = _moves(off.mean, off.variance, trained.mean, trained.variance, valid)
        without = _moves(*off_without, *on_without, valid)
        return cls(unbiased(log_ratio, without[0]), move, *without, valid, off.samples)


def _lasts(variances_without: Float64Array, variance: Float64Array) -> npt.NDArray[np.bool_]:
    """Whether a channel has a variance whichever group is left out: one that lives in a single group tells nothing."""
    return np.asarray((variances_without > ROUNDING * variance).all(axis=0))


def _moves(
    mean: Float64Array,
    variance: Float64Array,
    training_mean: Float64Array,
    training_variance: Float64Array,
    valid: npt.NDArray[np.bool_],
) -> tuple[Float64Array, Float64Array]:
    """d and m, of shape (C,) or (G, C)."""
    tiny = np.finfo(np.float64).tiny
    safe = np.where(valid, np.maximum(training_variance, tiny), 1.0)
    ratio = np.where(valid, np.maximum(variance, tiny) / safe, 1.0)
    return np.log(ratio), np.where(valid, (mean - training_mean) / np.sqrt(safe), 0.0)


def _require_samples(stored: BatchNorm, moments: Moments) -> None:
    """Refuses a set that is too small for any statement."""
    if moments.samples < MIN_GROUPS or moments.count < 2 * MIN_GROUPS:
        samples = "1 sample" if moments.samples == 1 else f"{moments.samples} samples"
        raise DataError(
            f"BatchNorm '{stored.name}' sees only {samples} with {moments.count} values per channel; "
            f"give at least {2 * MIN_GROUPS} samples"
        )
