"""Whether what a file stores is true under its noise: what F rests on.

F normalises with the stored statistics. They are those of the training, with the noise on, if the file is whole; where
weights were averaged without them, loaded without them, or the data is another, they are not, and F would be that of a
network that nobody trained. So each BatchNorm is compared with the noisy run, channel by channel:

    r = log(Var_on / Var)        d = (Mean_on - mean) / sqrt(Var)

each less twice its standard error (a jackknife over the samples). Training itself leaves some: a running mean lags
behind the weights, augmented images vary more than plain ones. What is beyond `MAX_RATIO` or `MAX_OFFSET` in half of
the channels is another thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vsfix.graph_passes.inference import Float64Array
from vsfix.graph_passes.jackknife import standard_error

from .unit_fit import UnitTarget
from .units import Unit, by_module

MAX_RATIO = 1.5  # of a variance, either way
MAX_OFFSET = 0.5  # of a mean, in stored deviations
_GROUPS = 16
_LEAST_VARIANCE = 1e-8  # of a stored variance beside epsilon; a channel below it stores nothing


@dataclass(frozen=True)
class StoredAgainstNoisy:
    """One BatchNorm.

    Attributes:
        name: its name.
        ratio: max(r, -r) as a factor, 1 or more, median over the channels, what chance explains taken off.
        offset: |d|, the same.
    """

    name: str
    ratio: float
    offset: float

    @property
    def differs(self) -> bool:
        """Whether it is farther off than training leaves it."""
        return self.ratio > MAX_RATIO or self.offset > MAX_OFFSET


def compare_stored(units: Sequence[Unit], targets: Mapping[str, UnitTarget]) -> tuple[StoredAgainstNoisy, ...]:
    """Compares each BatchNorm with the noisy runs, in the order of the graph.

    Args:
        units: of the graph; linear layers store nothing and are left out.
        targets: by the name of the unit.
    """
    modules = by_module([unit for unit in units if unit.batch_norm is not None])
    return tuple(
        _compare(uses[0], [targets[unit.name] for unit in uses])
        for uses in modules
        if all(unit.name in targets for unit in uses)
    )


def _compare(unit: Unit, targets: Sequence[UnitTarget]) -> StoredAgainstNoisy:
    """One BatchNorm, by what its output should be: mean beta, variance gamma^2 var / (var + eps).

    Of several uses the variance may lie anywhere between the mean of theirs, which training stores, and that of all of
    their values together.
    """
    batch_norm = unit.batch_norm
    assert batch_norm is not None
    noisy_variance = np.mean([target.noisy_variance for target in targets], axis=0)
    claimed = batch_norm.gamma**2 * batch_norm.variance / (batch_norm.variance + batch_norm.epsilon)
    known = (batch_norm.variance > _LEAST_VARIANCE * batch_norm.epsilon) & (claimed > 0) & (noisy_variance > 0)
    if not known.any() or len(targets[0].sample_means) < 2:
        return StoredAgainstNoisy(unit.module, 1.0, 0.0)
    claimed, beta = claimed[known], batch_norm.beta[known]
    means = np.stack([target.sample_means[:, known] for target in targets], axis=1)  # (N, uses, C)
    squares = np.stack([target.sample_squares[:, known] for target in targets], axis=1)

    def moved(rows: Float64Array, of_squares: Float64Array) -> tuple[Float64Array, Float64Array]:
        of_uses, tiny = rows.mean(axis=0), np.finfo(np.float64).tiny
        mean = of_uses.mean(axis=0)
        averaged = np.maximum((of_squares.mean(axis=0) - of_uses**2).mean(axis=0), tiny)
        variance = np.clip(claimed, averaged, averaged + of_uses.var(axis=0))
        return np.log(variance / claimed), (mean - beta) / np.sqrt(claimed)

    groups = np.arange(len(means)) % min(_GROUPS, len(means))
    without = [moved(means[groups != group], squares[groups != group]) for group in range(groups.max() + 1)]
    excess = []
    for value, others in zip(moved(means, squares), zip(*without, strict=True), strict=True):
        excess.append(float(np.median(np.maximum(np.abs(value) - 2 * standard_error(np.stack(others)), 0))))
    return StoredAgainstNoisy(unit.module, float(np.exp(excess[0])), excess[1])
