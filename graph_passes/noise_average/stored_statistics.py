"""Whether what a file stores is true under its noise: what F rests on.

F normalises with the stored statistics. They are those of the training, with the noise on, if the file is whole; where
weights were averaged without them, loaded without them, or the data is another, they are not, and F would be that of a
network that nobody trained. So each BatchNorm is compared with the noisy run, channel by channel:

    r = log(Var_on / Var)        d = (Mean_on - mean) / sqrt(Var)

each behind corrected predecessors and over all positions, less twice its standard error (a jackknife over the samples).
Training itself leaves some: a running mean lags behind the weights, augmented images vary more than plain ones. What is
beyond `MAX_RATIO` or `MAX_OFFSET` in half of the channels is another thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_modules
from vsfix.graph_passes.ir.runtime import Float64Array, OpenModel
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, measure
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.graph_passes.statistics.jackknife import standard_error
from vsfix.graph_passes.statistics.moments import Moments

MAX_RATIO = 1.5  # of a variance, either way
UNSET = 0.05  # of either: by more, mean 0 and variance 1 to the digit were never set
MAX_OFFSET = 0.5  # of a mean, in stored deviations
_LEAST_VARIANCE = 1e-8  # of a stored variance beside epsilon; a channel below it stores nothing


class StoredStatistics(Protocol):
    """What one BatchNorm stores, of a graph or of a module; arrays of shape (C,), float64."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def mean(self) -> Float64Array:
        """The stored mean."""
        ...

    @property
    def variance(self) -> Float64Array:
        """The stored variance."""
        ...

    @property
    def epsilon(self) -> float:
        """What is added to the variance."""
        ...

    @property
    def is_new(self) -> bool:
        """Whether that is mean 0 and variance 1, to the digit."""
        ...


@dataclass(frozen=True)
class StoredAgainstNoisy:
    """One BatchNorm.

    Attributes:
        name: its name.
        ratio: max(r, -r) as a factor, 1 or more, median over the channels, what chance explains taken off.
        offset: |d|, the same.
        is_unset: whether it stores what a new BatchNorm does, mean 0 and variance 1, and sees others.
    """

    name: str
    ratio: float
    offset: float
    is_unset: bool = False

    @property
    def differs(self) -> bool:
        """Whether it is farther off than training leaves it."""
        return self.ratio > MAX_RATIO or self.offset > MAX_OFFSET or self.is_unset


def measure_noisy(
    graph: gs.Graph,
    batches: Sequence[Batch],
    open_model: OpenModel,
    seed: int,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> dict[str, Moments]:
    """What each BatchNorm sees with the noise on, each behind corrected predecessors, by its name.

    Args:
        graph: with its markers; not changed.
        batches: the samples.
        open_model: opens a part of the graph in a runtime.
        seed: of the noise.
        max_memory: bytes that the process may hold; activations beyond go to the disk.
    """
    modules = find_modules(graph)
    if not modules:
        return {}
    config = MeasurementConfig([module.name for module in modules], noise_seed=seed, max_memory=max_memory)
    return measure(graph, batches, open_model, config)


def compare_stored(graph: gs.Graph, found: Mapping[str, Moments]) -> tuple[StoredAgainstNoisy, ...]:
    """Compares each BatchNorm with a run with the noise on, in the order of the graph.

    Args:
        graph: not changed.
        found: what `measure_noisy` gave.
    """
    return tuple(compare_moments(module, found[module.name]) for module in find_modules(graph))


def compare_moments(module: StoredStatistics, found: Moments) -> StoredAgainstNoisy:
    """Compares one BatchNorm with the noisy run.

    Args:
        module: what it stores.
        found: of its input, with the noise on; of several uses the variance that what is stored is nearer to counts,
            see `Moments.as_stored`.
    """
    seen = found.as_stored(module.variance)
    known = (module.variance > _LEAST_VARIANCE * module.epsilon) & ~found.degenerate & (seen.variance > 0)
    if not known.any() or len(found.counts) < 2:
        return StoredAgainstNoisy(module.name, 1.0, 0.0)
    means, variances = seen.without_each_group()

    def excess(values: Float64Array, without: Float64Array) -> float:
        beyond = np.abs(values) - 2 * standard_error(without)
        return float(np.median(np.maximum(beyond[known], 0)))

    with np.errstate(all="ignore"):  # of channels that are not known
        stored, deviation = module.variance, np.sqrt(module.variance)
        ratio = excess(np.log(seen.variance / stored), np.log(variances / stored))
        offset = excess((seen.mean - module.mean) / deviation, (means - module.mean) / deviation)
    is_unset = module.is_new and max(float(np.exp(ratio)) - 1, offset) > UNSET
    return StoredAgainstNoisy(module.name, float(np.exp(ratio)), offset, is_unset)
