"""Values of a forward, read at the moment when they are made: targets of units, and moments of BatchNorms' inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from vsfix.graph_passes.errors import DataError, ModelError
from vsfix.graph_passes.estimators.matching import LARGEST_TARGETS, VALUES, position_seeds
from vsfix.graph_passes.estimators.unit_fit import UnitTarget
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.noise_average.taps import choose_positions, positions_of
from vsfix.graph_passes.statistics.moments import Moments, MomentsAccumulator, SampleMoments

from .noisy_forward import Key, Observer
from .recording import ModuleUnit, owner_of, weight_owners
from .unit_parameters import StoredBatchNorm, affine


class Taps(Observer):
    """Reads values of a forward by their keys, each at the moment when it is made."""

    def __init__(self) -> None:
        self._wanted: dict[Key, list[tuple[Key, Any]]] = {}
        self._met: set[Key] = set()

    def want(self, key: Key, read: Any) -> None:
        """Calls `read` with the tensor of a key."""
        self._wanted.setdefault(key, []).append((key, read))

    def given(self, tensors: Sequence[torch.Tensor]) -> None:
        """Begins a forward."""
        self._met = set()
        for place, tensor in enumerate(tensors):
            self._hear(Key("input", place, "input"), tensor)

    def made(self, key: Key, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Reads the value, if it is wanted."""
        if key in self._wanted:
            self._hear(key, out)

    def _hear(self, key: Key, out: Any) -> None:
        for wanted, read in self._wanted.get(key, ()):
            if wanted.operator != key.operator or not isinstance(out, torch.Tensor):
                raise _other_path(key)
            self._met.add(key)
            read(out)

    def require_all(self) -> None:
        """Refuses a forward that did not make every value that is wanted.

        Raises:
            ModelError: it took another path.
        """
        missing = next((key for key in self._wanted if key not in self._met), None)
        if missing is not None:
            raise _other_path(missing)


def _other_path(key: Key) -> ModelError:
    where = f"part '{key.scope}'" if key.scope else "the module"
    return ModelError(f"the forward of {where} takes another path for other samples, so its values can't be compared")


def positions(tensor: torch.Tensor, samples: int, axis: int, chosen: Sequence[int] | None) -> Float64Array:
    """Some positions of a value, shape (N, M, C), float64; see `noise_average.taps`."""
    channels = tensor.shape[axis]
    if axis == -1:
        rows = tensor.reshape(samples, -1, channels)
    else:
        folded = tensor.shape[0] // samples  # rows of one sample
        rows = tensor.reshape(samples, folded, channels, -1).transpose(2, 3).reshape(samples, -1, channels)
    if chosen is not None:
        rows = rows[:, torch.as_tensor(chosen, device=rows.device)]
    return np.array(rows.detach().cpu().double().numpy())


class TargetTaps(Taps):
    """Collects the targets of units, and the moments of the inputs of BatchNorms, from noisy forwards.

    Args:
        module: what runs.
        units: of it.
        samples: N.
        recorded: how many samples the shapes of the units are of.
        seed: of the positions.
    """

    def __init__(self, module: nn.Module, units: Sequence[ModuleUnit], samples: int, recorded: int, seed: int) -> None:
        super().__init__()
        self._owners = weight_owners(module)
        self._count = samples
        self.chosen: dict[str, list[int] | None] = {}
        self.skipped: dict[str, str] = {}
        self._sums: dict[str, list[Float64Array]] = {}
        self._runs = 0
        self._first = 0
        self._size = 0
        self._is_measured = False
        self._moments: dict[str, MomentsAccumulator] = {}
        channels = sum(unit.channels for unit in units)
        values = max(min(VALUES, LARGEST_TARGETS // (8 * 3 * max(channels, 1))), 1)
        seeds = position_seeds(seed, [unit.name if unit.is_batch_norm else None for unit in units])
        for unit, seeds_of_unit in zip(units, seeds, strict=True):
            try:
                places = positions_of(unit.shape, recorded, unit.axis)
            except ModelError as error:
                self.skipped[unit.name] = str(error)
                continue
            self.chosen[unit.name] = choose_positions(places, max(1, values // samples), seeds_of_unit)
            self.want(unit.key, self._reader(unit, self._add_z))
            self.want(unit.output, self._reader(unit, self._add_h))

    def _reader(self, unit: ModuleUnit, add: Callable[[str, Float64Array], None]) -> Callable[[torch.Tensor], None]:
        def read(tensor: torch.Tensor) -> None:
            add(unit.name, positions(tensor, self._size, unit.axis, self.chosen[unit.name]))

        return read

    def begin(self, first: int, size: int, *, measured: bool) -> None:
        """Says which samples the next forward is of, and whether it is the one whose moments count."""
        self._first, self._size, self._is_measured = first, size, measured
        self._runs += size

    def _add_z(self, name: str, z: Float64Array) -> None:
        if not np.isfinite(z).all():
            raise DataError(f"'{name}' gives values that are not finite with the noise on")
        if name not in self._sums:
            self._sums[name] = [np.zeros((self._count, *z.shape[1:])), *np.zeros((2, z.shape[2]))]
        self._sums[name][1] += z.mean(axis=1).sum(axis=0)
        self._sums[name][2] += np.einsum("nmc,nmc->c", z, z) / z.shape[1]

    def _add_h(self, name: str, h: Float64Array) -> None:
        self._sums[name][0][self._first : self._first + self._size] += h

    def unit(self, key: Key, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], z: torch.Tensor) -> Any:
        """Adds to the moments of a BatchNorm's input."""
        part = owner_of(self._owners, func, args, kwargs, key.scope)
        if self._is_measured and part is not None and z.dim() > 1:
            found = sample_moments(args[0] if args else kwargs["input"], self._size)
            self._moments.setdefault(part, MomentsAccumulator()).add(found, self._first)
        return z

    def targets(self) -> dict[str, UnitTarget]:
        """By the name of the unit."""
        draws = self._runs // self._count
        found = {}
        for name, sums in self._sums.items():
            mean, squares = sums[1] / self._runs, sums[2] / self._runs
            found[name] = UnitTarget(self.chosen[name], sums[0] / draws, np.maximum(squares - mean**2, 0))
        return found

    def moments(self) -> dict[str, Moments]:
        """Of the input of each BatchNorm, by the name of the part."""
        return {part: accumulator.result() for part, accumulator in self._moments.items()}


def sample_moments(x: torch.Tensor, samples: int) -> SampleMoments:
    """The moments of each sample of the input of a BatchNorm, (N r, C, ...)."""
    columns = x.detach().flatten(2) if x.dim() > 2 else x.detach().unsqueeze(2)
    columns = (columns.cpu() if columns.device.type == "mps" else columns).double()
    mean = columns.mean(2)
    centred = (columns - mean.unsqueeze(2)).square().sum(2)
    return SampleMoments(columns.shape[2], mean.cpu().numpy(), centred.cpu().numpy()).of_samples(samples)


class MomentTaps(Taps):
    """The moments of the inputs of BatchNorms in one forward of all samples, each behind corrected predecessors or not.

    Args:
        module: what runs.
        samples: N.
        corrected: let each BatchNorm normalise with what is measured.
    """

    def __init__(self, module: nn.Module, samples: int, *, corrected: bool) -> None:
        super().__init__()
        self._module = module
        self._owners = weight_owners(module)
        self._count = samples
        self._corrected = corrected
        self._found: dict[str, list[Moments]] = {}

    def unit(self, key: Key, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], z: torch.Tensor) -> Any:
        """Measures the input; and corrects z."""
        part = owner_of(self._owners, func, args, kwargs, key.scope)
        if part is None or not isinstance(self._module.get_submodule(part), nn.modules.batchnorm._BatchNorm):
            return z
        accumulator = MomentsAccumulator()
        accumulator.add(sample_moments(args[0] if args else kwargs["input"], self._count), 0)
        measured = accumulator.result()
        self._found.setdefault(part, []).append(measured)
        if not self._corrected:
            return z
        stored = StoredBatchNorm.of(part, self._module.get_submodule(part))
        kept = measured.degenerate | (stored.variance <= 0)
        mean = np.where(kept, stored.mean, measured.mean)
        spread = np.sqrt(np.where(kept, stored.variance, measured.variance) + stored.epsilon)
        a = np.sqrt(stored.variance + stored.epsilon) / spread
        return affine(z, a, (1 - a) * stored.beta + stored.gamma * (stored.mean - mean) / spread, 1)

    def result(self) -> dict[str, Moments]:
        """By the name of the part."""
        return {part: uses[0] if len(uses) == 1 else Moments.pooled(uses) for part, uses in self._found.items()}
