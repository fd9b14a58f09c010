"""How far the stored statistics of a graph are from those that a hypothesis about its noise gives.

For a hypothesis the calibration set runs with that noise on and every BatchNorm in batch-statistics mode. Each channel
leaves two residuals,

    (mean_real - mean_stored) / sqrt(var_stored)      log var_real - log var_stored

and the mismatch of a BatchNorm is the mean, over its channels, of the sum of their squares.

The set is measured in two halves, which have the images and the draws of the noise to themselves. With their residuals
a and b, of all BatchNorms in one vector, and e the error that the whole set has by chance:

    mismatch = |(a + b) / 2|^2        what the whole set shows; it holds |e|^2
    chance   = |(a - b) / 2|^2        an estimate of |e|^2: each half has twice the squared error, a - b four times
    excess   = a . b                  mismatch - chance: what is left without it, so that a hypothesis with more noise,
                                      and with it a larger e, is not put at a disadvantage

All hypotheses share images and draws, so that what differs between them is the hypothesis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from .activation_cache import DEFAULT_MAX_MEMORY
from .batch_norm import BatchNorm, find_batch_norms
from .batches import Batch, count_samples
from .errors import DataError
from .inference import Float64Array, OpenModel
from .measurement import MeasurementConfig, measure
from .moments import Moments
from .noise import Noise
from .noise_insertion import InsertNoise

# A residual past this is as wrong as can be: one dying channel must not decide between two hypotheses.
MAX_RESIDUAL = 3.0
# A channel of which each half lies farther than this from the middle has too few values beside zero to be evidence.
MAX_HALVES_DIFFERENCE = 0.6
_TINY = float(np.finfo(np.float32).tiny)


class MismatchProbe:
    """Measures hypotheses on one set of images.

    Args:
        graph: not changed; without noise markers.
        batches: at least two samples.
        open_model: opens a part of the graph in a runtime.
        noise_seed: of the draws.
        max_memory: bytes that the process may hold; activations beyond go to the disk.

    Attributes:
        batch_norms: their names, in the order of the graph.
        bounds: where the residuals of each begin in the vector of all, and where the last end.
        samples: the size of the set.

    Raises:
        DataError: fewer than two samples.
    """

    def __init__(
        self,
        graph: gs.Graph,
        batches: Sequence[Batch],
        open_model: OpenModel,
        *,
        noise_seed: int,
        max_memory: int = DEFAULT_MAX_MEMORY,
    ) -> None:
        self._graph = graph
        self._halves = _split(batches)
        self._open_model = open_model
        self._seed = noise_seed
        self._max_memory = max_memory
        self._stored = find_batch_norms(graph)
        self.batch_norms = tuple(batch_norm.name for batch_norm in self._stored)
        self.bounds = np.cumsum([0] + [2 * batch_norm.channels for batch_norm in self._stored])
        self.samples = count_samples(batches)

    def residuals(self, sites: Mapping[str, Noise]) -> Float64Array:
        """The residuals of one hypothesis in both halves, shape (2, sum of 2C).

        They stand BatchNorm after BatchNorm, first of the means, then of the variances, and no further from 0 than
        `MAX_RESIDUAL`.

        Args:
            sites: the noise by the name of the tensor; empty for none.
        """
        return np.clip(self._residuals(self._measure(sites)), -MAX_RESIDUAL, MAX_RESIDUAL)

    def evidence(self) -> tuple[Float64Array, Float64Array]:
        """The residuals without noise, and the weight of each.

        A channel that is no evidence weighs 0: one that stores no variance, one that does not vary over these images,
        and one whose halves differ wildly (a unit that is nearly dead). The others weigh one over the root of their
        number in the BatchNorm, so that the squares of the weighted residuals sum up to the mismatches.

        Returns:
            Residuals of shape (2, sum of 2C), and weights of shape (sum of 2C,).

        Raises:
            DataError: no channel is left.
        """
        halves = self._measure({})
        residuals = self._residuals(halves)
        steady = np.abs(residuals[0] - residuals[1]) / 2 < MAX_HALVES_DIFFERENCE
        weights = np.zeros(int(self.bounds[-1]))
        for stored, start, end in zip(self._stored, self.bounds[:-1], self.bounds[1:], strict=True):
            usable = steady[start:end].reshape(2, -1).all(axis=0) & (stored.variance > _TINY)  # (C,)
            for half in halves:
                usable &= ~half[stored.name].degenerate
            weights[start:end] = np.tile(usable / np.sqrt(max(int(usable.sum()), 1)), 2)
        if not weights.any():
            raise DataError("no BatchNorm varies enough over these images to be compared; give some hundred")
        return np.clip(residuals, -MAX_RESIDUAL, MAX_RESIDUAL), weights

    def per_batch_norm(self, weighted: Float64Array) -> dict[str, float]:
        """The mismatch of each BatchNorm, from weighted residuals of shape (2, sum of 2C)."""
        sums = np.add.reduceat(weighted.mean(axis=0) ** 2, self.bounds[:-1])
        return dict(zip(self.batch_norms, sums.tolist(), strict=True))

    def _measure(self, sites: Mapping[str, Noise]) -> list[dict[str, Moments]]:
        """The moments of every BatchNorm in each half."""
        graph = self._graph.copy()
        if sites:
            InsertNoise(sites, tensors_only=True)(graph)
        found = []
        for number, half in enumerate(self._halves):
            seed = 2 * self._seed + number if sites else None  # else both would draw the same
            config = MeasurementConfig(frozenset(self.batch_norms), noise_seed=seed, max_memory=self._max_memory)
            found.append(measure(graph, half, self._open_model, config))
        return found

    def _residuals(self, halves: Sequence[Mapping[str, Moments]]) -> Float64Array:
        """The residuals of both halves, shape (2, sum of 2C)."""
        return np.stack([np.concatenate([_compare(one, half[one.name]) for one in self._stored]) for half in halves])


def mismatch_of(weighted: Float64Array) -> float:
    """What the whole set shows, from weighted residuals of shape (2, D)."""
    return float(np.sum(weighted.mean(axis=0) ** 2))


def chance_of(weighted: Float64Array) -> float:
    """What of it the calibration set makes by chance."""
    return float(np.sum((weighted[0] - weighted[1]) ** 2)) / 4


def excess_of(weighted: Float64Array) -> float:
    """The mismatch without chance; may be a little below 0."""
    return float(weighted[0] @ weighted[1])


def _split(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Every other batch; of a single one, every other sample."""
    if count_samples(batches) < 2:
        raise DataError("the calibration set has fewer than two samples; give some hundred")
    parts = list(batches)
    if len(parts) == 1:
        parts = [
            {name: array[start::2] if np.ndim(array) else array for name, array in parts[0].items()} for start in (0, 1)
        ]
    return parts[::2], parts[1::2]


def _compare(stored: BatchNorm, found: Moments) -> Float64Array:
    """Both residuals of each channel, shape (2C,); 0 where no variance is stored."""
    usable = stored.variance > _TINY
    variance = np.where(usable, stored.variance, 1.0)
    of_mean = (found.mean - stored.mean) / np.sqrt(variance)
    of_variance = np.log(np.maximum(found.variance, _TINY)) - np.log(variance)
    return np.where(usable, np.stack([of_mean, of_variance]), 0.0).ravel()
