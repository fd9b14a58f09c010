"""exact: the statistics of the calibration set with the noise off, each downstream of corrected predecessors.

The measured statistics, pooled over the whole set, are written, and the BatchNorms downstream see them. A channel
without a valid variance is unchanged. The intervals are those of the evidence (`estimate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm
from vsfix.graph_passes.ir.runtime import Float64Array, OpenModel
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, measure
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.graph_passes.statistics.estimate import Estimate, weigh
from vsfix.graph_passes.statistics.evidence import Evidence
from vsfix.graph_passes.statistics.moments import Moments


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
        layers: names of the BatchNorms to estimate; the others are unchanged.
        max_memory: bytes that the process may hold; activations beyond go to the disk.

    Raises:
        DataError: an empty set, too few samples, or values that are not finite.
    """
    estimates: dict[str, Estimate] = {}

    def correct(stored: BatchNorm, real: Moments) -> tuple[Float64Array, Float64Array]:
        estimate = weigh(stored, Evidence.of_reestimation(stored, real))
        valid = ~estimate.invalid
        estimate = replace(
            estimate,
            mean=np.where(valid, real.mean, stored.mean),
            variance=np.where(valid, real.variance, stored.variance),
        )
        estimates[stored.name] = estimate
        return estimate.mean, estimate.variance

    config = MeasurementConfig(corrected=frozenset(layers), max_memory=max_memory, correction=correct)
    measure(graph, batches, open_model, config)
    return {name: estimates[name] for name in layers}
