"""The scale and shift of each unit of a module: targets from noisy forwards, the match in one forward, the refinement.

The match needs no pass for each unit: all samples run together, and the forward stops at each unit in its order, where
z is that of the units upstream solved already,

    a, b    min over a > 0 and b of  sum (g(a z + b + s) - t)^2        t the mean over K noisy passes of g(z + s)

and goes on with a z + b (`matching`, `unit_fit` of `graph_passes.estimators`). A part that is used several times has
one a and b; it is solved between two forwards, when the z of all its uses is known.

Nothing is written here: parameters are new tensors beside those of the module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from vsfix.graph_passes.estimators.unit_fit import MatchedUnit, SeenUnit, UnitTarget, UnitUse, solve_unit
from vsfix.graph_passes.estimators.units import FoundParameters
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.noise_average.samples import held_out_rows
from vsfix.trainers.differentiable.refinement import RefinementConfig, refine_network
from vsfix.trainers.differentiable.refinement_samples import Samples, Tensors
from vsfix.trainers.differentiable.refinement_target import Target

from .module_samples import ModuleSamples, call_of, named_outputs
from .noisy_forward import Key
from .recording import ModuleUnit
from .taps import Taps, positions
from .unit_parameters import CONVOLUTIONS_BACK, affine, functional, new_tensors


class Match(Taps):
    """Solves unit after unit while all samples run through the module with its noise off.

    Args:
        units: those that may change, the last layers left out; the targets know them.
        targets: by the name of the unit.
        samples: N.

    Attributes:
        found: by the name of the unit; complete where `is_done`.
    """

    def __init__(self, units: Sequence[ModuleUnit], targets: Mapping[str, UnitTarget], samples: int) -> None:
        super().__init__()
        self._targets = targets
        self._count = samples
        self._held_out = held_out_rows(samples)
        self.found: dict[str, MatchedUnit] = {}
        self._by_part: dict[str, list[ModuleUnit]] = {}
        for unit in units:
            self._by_part.setdefault(unit.part, []).append(unit)
        self._by_key = {unit.key: unit for unit in units}
        self._sides: dict[tuple[str, str], Float64Array] = {}
        self._waiting: dict[str, UnitUse] = {}
        self._waiting_part: str | None = None
        for unit in units:
            for name, key in unit.region.sides.items():
                self.want(key, self._side_reader(unit, name))

    def _side_reader(self, unit: ModuleUnit, name: str) -> Callable[[torch.Tensor], None]:
        def read(tensor: torch.Tensor) -> None:
            chosen = self._targets[unit.name].chosen
            self._sides[unit.name, name] = positions(tensor, self._count, unit.axis, chosen)

        return read

    @property
    def is_done(self) -> bool:
        """Whether every unit is solved; else the forward runs again."""
        return all(unit.name in self.found for units in self._by_part.values() for unit in units)

    def unit(self, key: Key, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], z: torch.Tensor) -> Any:
        """Solves the unit, and gives a z + b."""
        unit = self._by_key.get(key)
        if unit is None:
            return z
        if unit.name not in self.found and self._waiting_part in (None, unit.part):
            use = UnitUse(unit.region, self._seen(unit, z), self._targets[unit.name])
            if len(self._by_part[unit.part]) == 1:
                self.found[unit.name] = solve_unit([use], self._held_out)
            else:
                self._waiting_part, self._waiting[unit.name] = unit.part, use
        if unit.name not in self.found:
            return z
        parameters = self.found[unit.name].parameters
        return affine(z, parameters.scale, parameters.shift, unit.axis)

    def _seen(self, unit: ModuleUnit, z: torch.Tensor) -> SeenUnit:
        """The values that the unit reads."""
        chosen = self._targets[unit.name].chosen
        sides = {name: self._sides[unit.name, name] for name in unit.region.sides}
        return SeenUnit(positions(z, self._count, unit.axis, chosen), sides)

    def finish_forward(self) -> None:
        """Solves a part with several uses, whose z is known now."""
        if self._waiting:
            solved = solve_unit(list(self._waiting.values()), self._held_out)
            self.found |= dict.fromkeys(self._waiting, solved)
            self._waiting.clear()
            self._waiting_part = None


def refine_units(
    module: nn.Module,
    data: ModuleSamples,
    units: Sequence[ModuleUnit],
    start: Mapping[str, FoundParameters],
    deviations: Mapping[str, Float64Array],
    targets: Mapping[str, Target],
    config: RefinementConfig,
) -> dict[str, FoundParameters]:
    """Refines the scale and shift of every unit, and the bias of the last layers, toward the outputs of F.

    Args:
        module: in eval mode; not changed.
        data: the samples.
        units: all of them.
        start: what the match found.
        deviations: of the z of each unit, the unit in which its shift moves.
        targets: of the outputs, by name.
        config: how.

    Raises:
        InputError: the module can't be differentiated.
        ModelError: the loss is not finite.
    """
    first = [unit for unit in units if unit.name == unit.part]
    begun = new_tensors(module, units, start)
    names = {unit.name: f"{unit.part}." if unit.part else "" for unit in first}
    held = {**dict(module.named_parameters()), **begun}
    starts: dict[str, Array] = {}
    steps: dict[str, Array] = {}
    for unit in first:
        if not unit.is_last:
            starts[f"{unit.name}:a"] = steps[f"{unit.name}:a"] = np.ones(unit.channels)
        starts[f"{unit.name}:b"], steps[f"{unit.name}:b"] = np.zeros(unit.channels), deviations[unit.name]

    def tensors(parameters: Tensors) -> dict[str, torch.Tensor]:
        made = dict(begun)
        for unit in first:
            weight, bias = f"{names[unit.name]}weight", f"{names[unit.name]}bias"
            like = held.get(weight)
            like = next(module.get_submodule(unit.part).buffers()) if like is None else like
            b = parameters[f"{unit.name}:b"].to(like.device, like.dtype)
            if unit.is_last:
                made[bias] = b + held[bias] if bias in held else b
                continue
            a = parameters[f"{unit.name}:a"].to(like.device, like.dtype)
            made[bias] = a * held[bias] + b if bias in held else b
            made[weight] = _scaled(module.get_submodule(unit.part), held.get(weight), a)
        return made

    def network(inputs: Tensors, parameters: Tensors) -> Tensors:
        args, kwargs = data.call(inputs)
        runner = functional(module, tensors(parameters))
        return {name: y.cpu() for name, y in named_outputs(call_of(runner, (args, kwargs))).items() if name in targets}

    samples = Samples(dict(data.samples.joined()), {name: target.mean for name, target in targets.items()})
    refined = refine_network(network, starts, steps, samples, targets, config)
    found: dict[str, FoundParameters] = {}
    for unit in units:
        earlier = start.get(unit.name) or FoundParameters(np.ones(unit.channels), np.zeros(unit.channels))
        a = refined.values.get(f"{unit.part}:a", np.ones(unit.channels))
        b = refined.values[f"{unit.part}:b"]
        a, b = np.where(a > 0, a, 1.0), np.where(a > 0, b, 0.0)
        found[unit.name] = FoundParameters(a * earlier.scale, a * earlier.shift + b)
    return found


def _scaled(part: nn.Module, weight: torch.Tensor | None, a: torch.Tensor) -> torch.Tensor:
    """A weight with its output channels scaled, differentiable; that of a BatchNorm without one is 1."""
    if weight is None:
        return a
    if isinstance(part, CONVOLUTIONS_BACK):
        by_group = weight.reshape(part.groups, -1, *weight.shape[1:])
        return (by_group * a.reshape(part.groups, 1, -1, *(1,) * (weight.dim() - 2))).reshape(weight.shape)
    return weight * a.reshape(-1, *(1,) * (weight.dim() - 1))
