"""What one BatchNorm should store, and how far the evidence carries it.

Whatever the method, what the evidence does not support is not written:

- a channel without a variance that can be told keeps its statistics;
- the moves of the other channels are drawn toward what they have in common, the mean log ratio of the BatchNorm where
  its 95 % interval excludes 0, else 0, each as far as it is unsure (`shrinkage`);
- so a BatchNorm whose interval includes 1 and whose channels scatter no more than chance keeps every statistic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .batch_norm import BatchNorm
from .evidence import Evidence
from .inference import Float64Array
from .jackknife import standard_error, student_t
from .shrinkage import ERROR_FLOOR, shrink

Interval = tuple[float, float]
MAX_ERROR = (
    0.5  # of a channel's log ratio; a channel that is less sure, one that is nearly dead, says nothing of the rest
)
MAX_LOG = 20.0  # keeps the ends of an interval finite


@dataclass(frozen=True)
class Estimate:
    """What one BatchNorm should store.

    Attributes:
        mean: shape (C,).
        variance: shape (C,), biased, not negative.
        unusable: shape (C,), true for the channels about which nothing can be said; their statistics stay.
        shift: the geometric mean over the usable channels of variance at inference over variance in training, as the
            evidence has it before it is weighed.
        interval: of the shift, 95 %; None where no sample was drawn and so nothing is uncertain.
        channel_intervals: of each channel's own ratio, 95 %, shape (C, 2); None as above.
        samples: how many the estimate rests on; 0 without data.
    """

    mean: Float64Array
    variance: Float64Array
    unusable: npt.NDArray[np.bool_]
    shift: float
    interval: Interval | None
    channel_intervals: Float64Array | None
    samples: int

    @property
    def unusable_channels(self) -> int:
        """The number of channels about which nothing can be said."""
        return int(self.unusable.sum())

    @property
    def half_width(self) -> float:
        """Half the width of the interval of the logarithm of the shift; 0 where nothing is uncertain."""
        return 0.0 if self.interval is None else float(np.log(self.interval[1] / self.interval[0]) / 2)


def weigh(stored: BatchNorm, evidence: Evidence) -> Estimate:
    """Takes as much of the evidence as it supports itself.

    Args:
        stored: the BatchNorm as it is.
        evidence: from at least four groups of samples.
    """
    usable = evidence.usable
    degrees = len(evidence.log_ratio_without) - 1
    t = student_t(degrees)
    heavy = np.sqrt(degrees / (degrees - 2))  # the deviation of Student's t: errors from few groups are errors too
    log_ratio, move = np.zeros(stored.channels), np.zeros(stored.channels)
    errors = standard_error(evidence.log_ratio_without)  # (C,)
    common, margin = _common(evidence, usable & (errors < MAX_ERROR), t)
    centre = common if abs(common) > margin else 0.0
    log_ratio[usable] = shrink(evidence.log_ratio[usable], heavy * errors[usable], centre)
    move_errors = standard_error(evidence.mean_move_without)
    move[usable] = shrink(evidence.mean_move[usable], heavy * move_errors[usable], 0.0)
    ends = evidence.log_ratio[:, None] + t * errors[:, None] * np.array([-1.0, 1.0])  # (C, 2)
    return Estimate(
        mean=np.where(move == 0, stored.mean, stored.mean + move * np.sqrt(np.maximum(stored.variance, 0))),
        variance=np.where(log_ratio == 0, stored.variance, stored.variance * np.exp(log_ratio)),
        unusable=~usable,
        shift=float(np.exp(common)),
        interval=(float(np.exp(common - margin)), float(np.exp(common + margin))),
        channel_intervals=np.exp(np.clip(ends, -MAX_LOG, MAX_LOG)),
        samples=evidence.samples,
    )


def _common(evidence: Evidence, telling: npt.NDArray[np.bool_], t: float) -> tuple[float, float]:
    """The mean log ratio of the channels that tell anything, and half its interval."""
    if not telling.any():
        return 0.0, MAX_LOG
    without = evidence.log_ratio_without[:, telling].mean(axis=1)  # (G,)
    margin = t * max(float(standard_error(without)), ERROR_FLOOR) + evidence.bias
    return float(evidence.log_ratio[telling].mean()), min(margin, MAX_LOG)
