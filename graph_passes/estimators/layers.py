"""The distance of each unit of a deployed network from the averaged one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vsfix.graph_passes.ir.graph import Tensor
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.noise_average.noise_average import Watch
from vsfix.graph_passes.noise_average.taps import PositionTap, tap_positions

from .unit_fit import UnitTarget
from .units import Unit


class UnitOutputs(Watch):
    """What the activations of units give out in a network with its noise off: a `Watch` of `run_deployed`.

    Args:
        units: those without chosen positions are left out; the tensors of the network have their names.
        chosen: the positions of each unit that are compared, by its name; None for all.
        shapes: of the tensors in a run of the first batch.
        size: samples of that batch.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        chosen: Mapping[str, list[int] | None],
        shapes: Mapping[str, tuple[int, ...]],
        size: int,
    ) -> None:
        self._units = [unit for unit in units if unit.name in chosen]
        self._chosen = chosen
        self._shapes = shapes
        self._size = size
        self._taps: dict[str, PositionTap] = {}
        self._found: dict[str, list[Array]] = {}

    def taps(self, tensor: Callable[[str], Tensor]) -> list[PositionTap]:
        """One for each unit."""
        for unit in self._units:
            shape, output = self._shapes[unit.z.name], tensor(unit.activation.output.name)
            chosen = self._chosen[unit.name]
            self._taps[unit.name] = tap_positions(output, shape, self._size, unit.axis, chosen, f".{unit.name}")
        return list(self._taps.values())

    def add(self, first: int, arrays: Mapping[str, Array]) -> None:
        """Takes what a run gave out; the runs come in order."""
        for name, tap in self._taps.items():
            self._found.setdefault(name, []).append(tap.read(arrays))

    def distances(self, targets: Mapping[str, UnitTarget]) -> dict[str, float]:
        """How far each unit is from its target, by its name.

        It is the mean squared distance of the output of its activation from the mean of the passes with the noise on,
        over the variance of that mean; 0 is equal.

        Args:
            targets: by the name of the unit, of the same samples.
        """
        return {
            name: _distance(np.concatenate(parts).astype(np.float64), targets[name])
            for name, parts in self._found.items()
            if name in targets
        }


def _distance(found: Float64Array, target: UnitTarget) -> float:
    """The mean squared distance from the target over its variance; 0 where no channel varies."""
    variance = target.mean.var(axis=(0, 1))  # (C,)
    alive = variance > 0
    if not alive.any():
        return 0.0
    squares = ((found - target.mean) ** 2).mean(axis=(0, 1))
    return float((squares[alive] / variance[alive]).mean())
