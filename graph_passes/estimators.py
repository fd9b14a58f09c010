"""The statistics that a BatchNorm should store for inference, by two methods.

exact   The real ones: mean and biased variance of every BatchNorm input over the calibration set with the noise off,
        each measured behind corrected predecessors. As good as the calibration set is large.

paired  The same inputs with the noise on and with the noise off; the stored statistics move by the difference:

            var'  = var * Var_off / Var_on
            mean' = mean + (Mean_off - Mean_on) * sqrt(var / Var_on)

        What the calibration set lacks against the training set is in both runs and cancels (a control variate), so
        the stored statistics keep what the whole training set taught and only the shift is estimated. In both runs
        every BatchNorm normalises with the statistics of the run itself, as it will once its stored ones are right.

A channel whose evidence does not carry an estimate keeps its stored statistics; `Estimate.kept_channels` counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from .activation_cache import DEFAULT_MAX_MEMORY
from .batch_norm import BatchNorm, find_batch_norms
from .errors import DataError
from .inference import Float64Array, OpenModel
from .measurement import Batch, MeasurementConfig, measure
from .moments import Moments

# Below this many values a channel's variance is not worth believing: its standard error is past 40 %.
MIN_VALUES = 16


@dataclass(frozen=True)
class Estimate:
    """What one BatchNorm should store.

    Attributes:
        mean: shape (C,).
        variance: shape (C,), biased, positive.
        kept: shape (C,), true for the channels whose stored statistics stay.
        values: the number of values that each channel saw with the noise off.
    """

    mean: Float64Array
    variance: Float64Array
    kept: npt.NDArray[np.bool_]
    values: int

    @property
    def kept_channels(self) -> int:
        """The number of channels that keep what was stored."""
        return int(self.kept.sum())


def exact(
    graph: gs.Graph,
    batches: Sequence[Batch],
    open_model: OpenModel,
    layers: Sequence[str],
    *,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> dict[str, Estimate]:
    """Estimates by re-estimation over the calibration set with the noise off.

    Args:
        graph: not changed; its markers are the identity.
        batches: the calibration set, in batches of any sizes.
        open_model: the runtime.
        layers: names of the BatchNorms to estimate; the others keep and use what they store.
        max_memory: bytes of cached activations to hold in memory.

    Raises:
        DataError: an empty set, too few values for a variance, or values that are not finite.
    """
    off = measure(graph, batches, open_model, MeasurementConfig(corrected=frozenset(layers), max_memory=max_memory))
    stored = {batch_norm.name: batch_norm for batch_norm in find_batch_norms(graph)}
    return {
        name: _estimate(stored[name], off[name].mean, off[name].variance, [off[name]], off[name].count)
        for name in layers
    }


def paired(
    graph: gs.Graph,
    batches: Sequence[Batch],
    open_model: OpenModel,
    layers: Sequence[str],
    *,
    seed: int,
    repeats: int = 8,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> dict[str, Estimate]:
    """Estimates by the difference that the noise makes on the same inputs.

    Args:
        graph: not changed; its markers say where the noise was.
        batches: the calibration set, in batches of any sizes.
        open_model: the runtime.
        layers: names of the BatchNorms to estimate.
        seed: of the noise.
        repeats: how often the set is run with the noise on, under other draws.
        max_memory: bytes of cached activations to hold in memory.

    Raises:
        DataError: see `exact`.
    """
    everywhere = frozenset(batch_norm.name for batch_norm in find_batch_norms(graph))
    off = measure(graph, batches, open_model, MeasurementConfig(corrected=everywhere, max_memory=max_memory))
    noisy = MeasurementConfig(corrected=everywhere, noise_seed=seed, max_memory=max_memory)
    on = measure(graph, list(batches) * repeats, open_model, noisy)
    stored = {batch_norm.name: batch_norm for batch_norm in find_batch_norms(graph)}
    return {name: _paired_estimate(stored[name], on[name], off[name]) for name in layers}


def _paired_estimate(stored: BatchNorm, on: Moments, off: Moments) -> Estimate:
    """Moves the stored statistics of one BatchNorm by the difference between the two runs."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        variance = stored.variance * (off.variance / on.variance)
        mean = stored.mean + (off.mean - on.mean) * np.sqrt(stored.variance / on.variance)
    return _estimate(stored, mean, variance, [on, off], off.count)


def _estimate(
    stored: BatchNorm, mean: Float64Array, variance: Float64Array, measured: Sequence[Moments], values: int
) -> Estimate:
    """Takes the new statistics where the evidence carries them, and the stored ones elsewhere."""
    if values < MIN_VALUES:
        raise DataError(
            f"BatchNorm '{stored.name}' sees only {values} values per channel; give at least {MIN_VALUES} samples"
        )
    kept = ~(np.isfinite(mean) & np.isfinite(variance)) | (variance <= 0) | (stored.variance <= 0)
    for moments in measured:
        kept |= moments.degenerate
    return Estimate(
        mean=np.where(kept, stored.mean, mean),
        variance=np.where(kept, stored.variance, variance),
        kept=kept,
        values=values,
    )
