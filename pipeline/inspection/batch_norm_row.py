"""One BatchNorm of a model: the noise that reaches it, the shift that this causes, and what it multiplies by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.noise.analysis import Distance, NoisePaths
from vsfix.graph_passes.precision.weight_rounding import LIMITS
from vsfix.graph_passes.statistics.moments import Moments
from vsfix.graph_passes.statistics.shift import (
    geometric_mean,
    joint_variance,
    predicted_shift_ratio,
    shift_ratio,
    variance_ratio,
)

_LARGEST_FP16 = LIMITS[onnx.TensorProto.FLOAT16][0]


@dataclass(frozen=True)
class BatchNormRow:
    """One BatchNorm.

    Attributes:
        name: the module's or the node's name.
        channels: C.
        noise: the nearest noise that reaches it, as `dropout:0.5`; empty where none does.
        distance: `direct`, `linear`, `downstream`, or empty.
        sources: the number of noise layers that reach it.
        predicted_shift: variance at inference over stored variance by the closed form, geometric mean over the
            channels; None where the noise is not direct or the closed form does not fit.
        measured_shift: the same ratio measured on data; None without data.
        mismatch: max(stored / real, real / stored), geometric mean over the channels; None without data.
        mean_offset: |real mean - stored mean| in stored deviations, mean over the channels; None without data.
        source: the name of the nearest noise layer; empty where none reaches it.
        unexplained: the factor, 1 or more, by which the measured shift is off from what the noise makes of it, median
            over the channels; None without data. Without noise that is 1, and with noise directly in front the
            predicted one; of other noise it is only known that the variance is lower without it.
        gain_low: the smallest |gamma| / sqrt(var + epsilon) of a channel, by which a fold multiplies its weights; None
            where one is not finite.
        gain_high: the largest.
        largest_offset: as `mean_offset`, of the channel where it is largest.
        beyond_fp16: channels whose gain or shift float16 can't hold, or is not finite.
    """

    name: str
    channels: int
    noise: str
    distance: str
    sources: int
    predicted_shift: float | None
    measured_shift: float | None
    mismatch: float | None
    mean_offset: float | None = None
    source: str = ""
    unexplained: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    beyond_fp16: int = 0
    largest_offset: float | None = None

    @property
    def known_variance_ratio(self) -> float | None:
        """The measured variance ratio; without data that of the predicted shift."""
        if self.mismatch is not None or not self.predicted_shift:
            return self.mismatch
        return max(self.predicted_shift, 1 / self.predicted_shift)


def batch_norm_row(batch_norm: BatchNorm, paths: NoisePaths, real: Mapping[str, Moments]) -> BatchNormRow:
    """The row of one BatchNorm.

    Args:
        batch_norm: what it stores.
        paths: those of the noise that reaches it, the nearest first.
        real: moments of the inputs with the noise off, by the name of the BatchNorm; empty where nothing ran.
    """
    nearest = paths[0] if paths else None
    predicted: float | None = None
    expected: Float64Array | None = None if paths else np.ones(batch_norm.channels)
    # The closed form knows the noise directly upstream, one layer of it or several; what comes from farther away is
    # already in the stored statistics of the tensor in front.
    direct = [path.source.noise for path in paths.at(Distance.DIRECT)]
    if direct and all(noise.is_multiplicative for noise in direct):
        expected = predicted_shift_ratio(batch_norm, joint_variance(direct))
        predicted = _number(geometric_mean(expected))
    measured = mismatch = offset = unexplained = largest = None
    if batch_norm.name in real:
        ratio = shift_ratio(batch_norm, real[batch_norm.name])
        measured, mismatch = _number(geometric_mean(ratio)), _number(variance_ratio(ratio))
        unexplained = _median(
            np.maximum(ratio, 1.0) if expected is None else np.maximum(ratio / expected, expected / ratio)
        )
        with np.errstate(all="ignore"):  # statistics that are not finite are named elsewhere
            deviation = np.sqrt(batch_norm.variance + batch_norm.epsilon)
            offsets = np.abs(real[batch_norm.name].mean - batch_norm.mean) / deviation
            offset, largest = _number(float(np.mean(offsets))), _number(float(np.max(offsets, initial=0.0)))
    gain, shift = np.abs(batch_norm.scale), np.abs(batch_norm.shift)
    return BatchNormRow(
        name=batch_norm.name,
        channels=batch_norm.channels,
        noise=str(nearest.source.noise) if nearest else "",
        distance=str(nearest.distance) if nearest else "",
        sources=len(paths),
        predicted_shift=predicted,
        measured_shift=measured,
        mismatch=mismatch,
        mean_offset=offset,
        source=nearest.source.name if nearest else "",
        unexplained=unexplained,
        largest_offset=largest,
        gain_low=_number(float(gain.min(initial=np.inf))),
        gain_high=_number(float(gain.max(initial=0.0))),
        beyond_fp16=int(np.sum(~((gain <= _LARGEST_FP16) & (shift <= _LARGEST_FP16)))),
    )


def _median(values: Float64Array) -> float | None:
    """The median of what is finite; None where nothing is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else None


def _number(value: float) -> float | None:
    """None for NaN, so that JSON has no number that is none."""
    return value if np.isfinite(value) else None
