"""The statistics that one BatchNorm should store, as far as the evidence supports them.

Whatever the method, nothing without evidence is written:

- the statistics of a channel without a measurable variance are unchanged;
- the moves of the other channels are drawn toward what they have in common, the mean log ratio of the BatchNorm where
  that is more than chance, else 0, each as far as it is unsure (`shrinkage`);
- so a BatchNorm is unchanged where neither the common ratio, nor the scatter of its channels, nor the moves of
  their means are more than chance.

Three things are looked at, as often as there are looks at a growing set. With Bonferroni's inequality each of them has
its share of the level, so that a BatchNorm without any shift is changed with a probability of 5 % at most:

    decisions    each at 0.05 / (3 looks)        intervals    each at 0.05 / looks

What all channels may be off by alike (`Evidence.bias`) is added as an independent error is, in quadrature.

Sources: Dunn, "Multiple comparisons among means", 1961; Jennison, Turnbull, "Interim analyses: the repeated confidence
interval approach", 1989 (intervals that hold at every look, whatever decides when to stop).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm
from vsfix.graph_passes.ir.runtime import Float64Array

from .evidence import Evidence
from .jackknife import LEVEL, effective_degrees, standard_error, student_t
from .shrinkage import ERROR_FLOOR, scatter_p_value, shrink

Interval = tuple[float, float]
MAX_ERROR = 0.5  # of a channel's log ratio; a channel that is less sure, one that is nearly dead, is not informative
DECISIONS = 3  # the common ratio, the scatter of the channels around it, the moves of their means
MAX_LOG = 20.0  # keeps the ends of an interval finite


@dataclass(frozen=True)
class Estimate:
    """The statistics that one BatchNorm should store.

    Attributes:
        mean: shape (C,).
        variance: shape (C,), biased, not negative.
        invalid: shape (C,), true for the channels without evidence; their statistics are unchanged.
        shift: the geometric mean over the valid channels of variance at inference over variance in training, as the
            evidence has it before it is weighed.
        interval: of the shift, 95 %; None where no sample was drawn and so nothing is uncertain.
        channel_intervals: of each channel's own ratio, 95 %, shape (C, 2); None as above.
        samples: how many the estimate rests on; 0 without data.
    """

    mean: Float64Array
    variance: Float64Array
    invalid: npt.NDArray[np.bool_]
    shift: float
    interval: Interval | None
    channel_intervals: Float64Array | None
    samples: int

    @property
    def invalid_channels(self) -> int:
        """The number of channels without evidence."""
        return int(self.invalid.sum())

    @property
    def half_width(self) -> float:
        """Half the width of the interval of the logarithm of the shift; 0 where nothing is uncertain."""
        return 0.0 if self.interval is None else float(np.log(self.interval[1] / self.interval[0]) / 2)


def weigh(stored: BatchNorm, evidence: Evidence, looks: int = 1) -> Estimate:
    """The estimate that the evidence supports.

    Args:
        stored: the BatchNorm as it is.
        evidence: from at least four groups of samples.
        looks: how often evidence from a growing set is looked at, at most.
    """
    valid, level = evidence.valid, LEVEL / looks
    log_ratio, move = np.zeros(stored.channels), np.zeros(stored.channels)
    errors = standard_error(evidence.log_ratio_without)  # (C,)
    informative = valid & (errors < MAX_ERROR)
    common, without, error = _common(evidence, informative)
    degrees = effective_degrees(evidence.log_ratio_without[:, informative])
    t = student_t(degrees, level)
    margin = min(float(np.hypot(t * error, evidence.bias)), MAX_LOG)
    is_shifted = abs(common) > np.hypot(student_t(degrees, level / DECISIONS) * error, evidence.bias)
    centre, moved = (common, without) if is_shifted else (0.0, np.zeros(len(without)))
    if valid.any():
        log_ratio[valid] = _weighed(
            evidence.log_ratio[valid], evidence.log_ratio_without[:, valid], centre, moved, level / DECISIONS
        )
        move[valid] = _weighed(
            evidence.mean_move[valid], evidence.mean_move_without[:, valid], 0.0, 0 * moved, level / DECISIONS
        )
    ends = evidence.log_ratio[:, None] + t * errors[:, None] * np.array([-1.0, 1.0])  # (C, 2)
    return Estimate(
        mean=np.where(move == 0, stored.mean, stored.mean + move * np.sqrt(np.maximum(stored.variance, 0))),
        variance=np.where(log_ratio == 0, stored.variance, stored.variance * np.exp(log_ratio)),
        invalid=~valid,
        shift=float(np.exp(common)),
        interval=(float(np.exp(common - margin)), float(np.exp(common + margin))),
        channel_intervals=np.exp(np.clip(ends, -MAX_LOG, MAX_LOG)),
        samples=evidence.samples,
    )


def _weighed(
    values: Float64Array, without: Float64Array, centre: float, centre_without: Float64Array, level: float
) -> Float64Array:
    """Readings drawn toward a centre, which is known without each group too, shape (G,)."""
    degrees = effective_degrees(without)
    heavy = np.sqrt(degrees / (degrees - 2))  # the deviation of Student's t: errors from few groups are errors too
    chance = scatter_p_value(values - centre, without - centre_without[:, None], degrees)
    return shrink(values, heavy * standard_error(without), centre, scatters=chance < level)


def _common(evidence: Evidence, informative: npt.NDArray[np.bool_]) -> tuple[float, Float64Array, float]:
    """The mean log ratio of the informative channels, that mean without each group, and its standard error."""
    without = evidence.log_ratio_without
    if not informative.any():
        return 0.0, np.zeros(len(without)), MAX_LOG
    common = without[:, informative].mean(axis=1)  # (G,)
    return float(evidence.log_ratio[informative].mean()), common, max(float(standard_error(common)), ERROR_FLOOR)
