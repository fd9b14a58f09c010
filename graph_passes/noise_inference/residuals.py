"""What is left of the difference between what a BatchNorm stores and what it sees, with all noise that is known on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_modules
from vsfix.graph_passes.ir.runtime import Float64Array, OpenModel
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, measure
from vsfix.graph_passes.noise.marker import read_marker
from vsfix.graph_passes.statistics.batches import Batch, count_samples
from vsfix.graph_passes.statistics.moments import Moments

from .telling import TRAINING_SAMPLES, ChannelEvidence, Telling, is_sure

DRIFT = 0.03  # a relative residual that weights leave which moved while the statistics were gathered
WORST = 4.0  # times what chance makes of one BatchNorm's residual
MEANS = 0.2  # deviations, root mean square over the channels, by which means may be off


@dataclass(frozen=True)
class Residual:
    """What is left of one BatchNorm.

    Attributes:
        before: of the variances, relative, root mean square over the channels, without noise in front of it.
        after: with the noise that is known.
        means: of the means, in stored deviations.
        chance: what the sampling of the training, and weights that moved meanwhile, may make of the variances.
        has_other_variances: whether the variances are farther off than these explain, and than chance.
        has_other_means: the same of the means, which unbiased noise does not move.
    """

    before: float
    after: float
    means: float
    chance: float
    has_other_variances: bool
    has_other_means: bool

    @classmethod
    def of(cls, telling: Telling, left: Float64Array, samples: int) -> Residual:
        """The residual of what a BatchNorm told.

        Args:
            telling: what it told.
            left: of its variances, squared, on all groups and without each, shape (1 + G,).
            samples: of the calibration set.
        """
        chance = root(telling.chance * samples / TRAINING_SAMPLES + DRIFT**2)
        return cls(
            before=root(telling.without[0]),
            after=root(left[0]),
            means=root(telling.means[0]),
            chance=chance,
            has_other_variances=is_sure(left, (WORST * chance) ** 2),
            has_other_means=is_sure(telling.means, MEANS**2),
        )

    @property
    def is_off(self) -> bool:
        """Whether noise is not the whole reason."""
        return self.has_other_variances or self.has_other_means


def residuals_under_noise(
    graph: gs.Graph,
    batches: Sequence[Batch],
    open_model: OpenModel,
    *,
    seed: int = 0,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> dict[str, Residual]:
    """What is left of each BatchNorm with the noise of the markers on, each behind corrected predecessors.

    Args:
        graph: not changed.
        batches: the calibration set, shuffled.
        open_model: opens a part of the graph in a runtime.
        seed: of the noise.
        max_memory: bytes that the process may hold; activations beyond go to the disk.

    Returns:
        By the name of the BatchNorm, in the order of the graph; without those that tell nothing.

    Raises:
        DataError: data that is not finite.
    """
    is_noisy = any(read_marker(node) is not None for node in graph.nodes)
    config = MeasurementConfig(
        [module.name for module in find_modules(graph)], noise_seed=seed if is_noisy else None, max_memory=max_memory
    )
    return residuals_of(graph, measure(graph, batches, open_model, config), count_samples(batches))


def residuals_of(graph: gs.Graph, found: Mapping[str, Moments], samples: int) -> dict[str, Residual]:
    """As `residuals_under_noise`, from what was measured so already.

    Args:
        graph: not changed.
        found: by the name of the BatchNorm.
        samples: of the calibration set.
    """
    return {
        telling.batch_norm: Residual.of(telling, telling.without, samples)
        for telling in stored_against_seen(graph, found)
    }


def stored_against_seen(graph: gs.Graph, found: Mapping[str, Moments]) -> list[Telling]:
    """What each BatchNorm stores against what it sees; without those that tell nothing.

    Args:
        graph: not changed.
        found: what was measured, by the name of the BatchNorm.
    """
    evidence = {module.name: ChannelEvidence.of(module, found[module.name]) for module in find_modules(graph)}
    return [one.tell(name, (), ()) for name, one in evidence.items() if one.channels]


def root(square: float) -> float:
    """The root; 0 for what is below it by chance."""
    return float(max(square, 0.0) ** 0.5)
