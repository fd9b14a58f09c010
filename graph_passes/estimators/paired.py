"""paired: the same inputs with the noise on and with the noise off; the stored statistics move by the difference.

    var'  = var * Var_off / Var_on
    mean' = mean + (Mean_off - Mean_on) * sqrt(var / Var_on)

What the calibration set lacks against the training set is in both runs and cancels (a control variate), so the stored
statistics keep the evidence of the whole training set and only the shift is estimated. For that both runs must be
networks of the whole training set, not of the few samples at hand: with the noise on, every BatchNorm normalises with
its stored statistics, as the training left them; with the noise off, with those that it will be deployed with, each
downstream of its corrected predecessors.

The set is taken in growing parts, 32 samples, 64, 128 and so on, until the interval of every shift is narrow enough or
the samples are spent. Each part is a look at the same shifts, and the intervals and decisions of every look are those
of as many looks as the set allows (`estimate`). More samples are not informative of a BatchNorm of which no channel has
a variance, and so none is taken for its sake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm
from vsfix.graph_passes.errors import CheckFailedError, DataError
from vsfix.graph_passes.ir.runtime import Float64Array, OpenModel
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, measure
from vsfix.graph_passes.measurement.staging import noisy_markers
from vsfix.graph_passes.statistics.batches import Batch, count_samples, first_samples, prescribed_batch_size
from vsfix.graph_passes.statistics.estimate import Estimate, weigh
from vsfix.graph_passes.statistics.evidence import Evidence
from vsfix.graph_passes.statistics.moments import Moments

FIRST_PART = 32  # samples
ROUNDING = 1e-6
REPEATED_SAMPLES = 4  # on which two runs with the noise off must give the same bits


@dataclass(frozen=True)
class PairedConfig:
    """The settings of the paired method.

    Attributes:
        seed: of the noise.
        repeats: runs with the noise on for each run with the noise off.
        max_interval_width: half the relative width of a shift's interval that is narrow enough; 0 takes every sample.
        max_memory: bytes that the process may hold; activations beyond go to the disk.
    """

    seed: int = 0
    repeats: int = 8
    max_interval_width: float = 0.0
    max_memory: int = DEFAULT_MAX_MEMORY


def paired(
    graph: gs.Graph,
    batches: Sequence[Batch],
    open_model: OpenModel,
    layers: Sequence[str],
    config: PairedConfig | None = None,
) -> dict[str, Estimate]:
    """Estimates by the difference that the noise makes on the same inputs.

    Args:
        graph: not changed; its markers say where the noise was.
        batches: the calibration set, in batches of any sizes.
        open_model: the runtime.
        layers: names of the BatchNorms to estimate.
        config: how to run.

    Raises:
        DataError: an empty set, too few samples, or values that are not finite.
        CheckFailedError: two runs with the noise off differ, or the noise changes nothing: no difference would count.
    """
    config = config or PairedConfig()
    total = count_samples(batches)
    if not total:
        raise DataError("the calibration set is empty; give at least one sample")
    whole = prescribed_batch_size(graph) is not None
    _require_repeatable(graph, first_samples(batches, REPEATED_SAMPLES, whole=whole), open_model)
    estimates: dict[str, Estimate] = {}
    parts = growing_parts(total) if config.max_interval_width else [total]
    for part in parts:
        few = first_samples(batches, part, whole=whole)
        estimates = _estimate(graph, few, open_model, layers, config, looks=len(parts))
        alive = [estimate for estimate in estimates.values() if not estimate.invalid.all()]
        if max((estimate.half_width for estimate in alive), default=0.0) <= config.max_interval_width:
            break
    return estimates


def growing_parts(total: int) -> list[int]:
    """The sizes of the parts of a set that are looked at, each twice the one before, the last one all of it."""
    parts = [min(FIRST_PART, total)]
    while parts[-1] < total:
        parts.append(min(2 * parts[-1], total))
    return parts


def _estimate(
    graph: gs.Graph,
    batches: Sequence[Batch],
    open_model: OpenModel,
    layers: Sequence[str],
    config: PairedConfig,
    looks: int,
) -> dict[str, Estimate]:
    """The estimates from one part of the set, which is one of so many looks."""
    noise_on = MeasurementConfig(frozenset(), config.seed, config.repeats, config.max_memory)
    on = measure(graph, batches, open_model, noise_on)
    estimates: dict[str, Estimate] = {}
    unmoved: set[str] = set()

    def correct(stored: BatchNorm, off: Moments) -> tuple[Float64Array, Float64Array]:
        estimate = weigh(stored, Evidence.of_pair(stored, on[stored.name], off), looks)
        estimates[stored.name] = estimate
        if _close(on[stored.name], off):
            unmoved.add(stored.name)
        return estimate.mean, estimate.variance

    noise_off = MeasurementConfig(frozenset(layers), max_memory=config.max_memory, correction=correct)
    measure(graph, batches, open_model, noise_off)
    if layers and noisy_markers(graph) and unmoved.issuperset(layers):
        raise CheckFailedError("the run with the noise on gave the same bits as the one without: nothing can be learnt")
    return {name: estimates[name] for name in layers}


def _require_repeatable(graph: gs.Graph, few: Sequence[Batch], open_model: OpenModel) -> None:
    """Refuses a runtime, or a graph with random nodes of its own, that gives other bits on the same inputs."""
    first, second = (measure(graph, few, open_model) for _ in range(2))
    for name, moments in first.items():
        if not _equal(moments, second[name]):
            raise CheckFailedError(
                f"two runs with the noise off differ at BatchNorm '{name}': a node of the graph draws at random"
            )


def _equal(one: Moments, other: Moments) -> bool:
    """Whether two measurements agree to the bit."""
    return one.mean.tobytes() == other.mean.tobytes() and one.variance.tobytes() == other.variance.tobytes()


def _close(one: Moments, other: Moments) -> bool:
    """Whether two measurements differ by no more than the rounding of two runs of float32."""
    return bool(
        np.allclose(one.variance, other.variance, rtol=ROUNDING) and np.allclose(one.mean, other.mean, ROUNDING)
    )
