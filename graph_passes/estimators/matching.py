"""match: the scale and shift of each unit, layer by layer, so that the deployed network follows the averaged one.

In the order of the graph, for a unit with z (noise off, the units upstream of it solved already) and the activation g
that follows:

    t       mean over K noisy passes of g(z), or of g(z + s) after a sum; the passes use the file as it is
    solve   min over a > 0 and b of  sum (g(a z + b + s) - t)^2      for each channel, over samples and positions

from a = 1, b = 0 (`unit_fit`). Why the mean: the next layer is linear, and E[W h] = W E[h], so that conditional means
that match upstream give the right mean downstream.

Memory is bounded by a fixed number of positions for each channel, chosen under a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from zlib import crc32

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes import progress
from vsfix.graph_passes.errors import DataError, ModelError
from vsfix.graph_passes.ir.graph import Tensor
from vsfix.graph_passes.ir.runtime import Array, Float64Array, OpenModel
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY, ActivationCache
from vsfix.graph_passes.measurement.staged_run import StagedRun
from vsfix.graph_passes.measurement.staging import Stage, Target, plan_stages
from vsfix.graph_passes.noise.marker import RemoveMarkers, is_dropout
from vsfix.graph_passes.noise_average.noise_average import NoiseAverage
from vsfix.graph_passes.noise_average.samples import SampleSet, held_out_rows
from vsfix.graph_passes.noise_average.taps import PositionTap, choose_positions, positions_of, tap_positions
from vsfix.graph_passes.statistics.batches import samples_in

from .activations import Activation
from .unit_fit import MatchedUnit, SeenUnit, UnitTarget, UnitUse, solve_unit
from .units import FreeAffine, Unit, by_module, insert_affine

VALUES = 4096  # of a channel, over all samples
LARGEST_TARGETS = 1 << 28  # bytes of the targets of all units


def position_seeds(seed: int, batch_norms: Sequence[str | None]) -> list[tuple[int, int]]:
    """The seeds of the positions of each unit, the same for a network and for a file that was exported from it.

    Args:
        seed: of the whole.
        batch_norms: for each unit in its order the name of the BatchNorm; None for a linear layer, which is numbered,
            for its name in a file is the exporter's.
    """
    numbers = count()
    names = [f"linear {next(numbers)}" if name is None else name for name in batch_norms]
    return [(seed, crc32(name.encode())) for name in names]


class TargetCollector:
    """Collects the targets of units from runs with the noise on.

    Args:
        average: F.
        units: of its graph.
        samples: that it runs on.
        seed: of the positions.

    Attributes:
        taps: to be run with F.
        skipped: the units that can't be compared, by name, with the reason.
    """

    def __init__(self, average: NoiseAverage, units: Sequence[Unit], samples: SampleSet, seed: int) -> None:
        self._count = len(samples)
        self._size = samples_in(samples.batches[0])
        self.skipped: dict[str, str] = {}
        self.chosen: dict[str, list[int] | None] = {}
        self._taps: dict[str, tuple[PositionTap, PositionTap]] = {}
        self._sums: dict[str, list[Float64Array]] = {}
        self._runs = 0
        channels = sum(unit.channels for unit in units)
        values = max(min(VALUES, LARGEST_TARGETS // (8 * 3 * max(channels, 1))), 1)
        seeds = position_seeds(seed, [None if unit.batch_norm is None else unit.name for unit in units])
        for unit, seeds_of_unit in zip(units, seeds, strict=True):
            try:
                self._add_taps(average, unit, max(1, values // len(samples)), seeds_of_unit)
            except ModelError as error:
                self.skipped[unit.name] = str(error)

    def _add_taps(self, average: NoiseAverage, unit: Unit, wanted: int, seeds: tuple[int, int]) -> None:
        shape = average.shapes[unit.z.name]
        positions = positions_of(shape, self._size, unit.axis)
        if average.shapes[unit.activation.output.name] != shape:
            raise ModelError("the output of its activation has another shape")
        self.chosen[unit.name] = chosen = choose_positions(positions, wanted, seeds)
        z = tap_positions(average.tensor(unit.z.name), shape, self._size, unit.axis, chosen)
        h = z
        if unit.activation.output is not unit.z:
            h = tap_positions(average.tensor(unit.activation.output.name), shape, self._size, unit.axis, chosen)
        self._taps[unit.name] = (z, h)

    @property
    def taps(self) -> list[PositionTap]:
        """The taps of every unit, each once."""
        found: list[PositionTap] = []
        for z, h in self._taps.values():
            found += [z] if h is z else [z, h]
        return found

    def add(self, first: int, count: int, arrays: Mapping[str, Array]) -> None:
        """Adds one run with the noise on.

        Raises:
            DataError: a value that is not finite.
        """
        for name, (z_tap, h_tap) in self._taps.items():
            # as the runtime gave it, (n, C, M) or (n, M, C): turning every one costs more than summing it
            z, axis = arrays[z_tap.output.name], 1 + z_tap.channels_last
            shared = {0, 1, 2} - {axis}
            means = z.sum(axis=tuple(shared), dtype=np.float64)  # (C,)
            wide = z.astype(np.float64, copy=False)
            squares = np.einsum("nmc,nmc->c" if axis == 2 else "ncm,ncm->c", wide, wide)
            if not np.isfinite(squares).all() and not np.isfinite(z).all():
                raise DataError(f"'{name}' gives values that are not finite with the noise on")
            if name not in self._sums:
                self._sums[name] = [np.zeros((self._count, *z.shape[1:])), *np.zeros((2, z.shape[axis]))]
            targets, all_means, all_squares = self._sums[name]
            targets[first : first + count] += arrays[h_tap.output.name]
            positions = z.shape[3 - axis]
            all_means += means / positions
            all_squares += squares / positions
        self._runs += count

    def result(self) -> dict[str, UnitTarget]:
        """The targets, by the name of the unit."""
        draws = self._runs // self._count
        found: dict[str, UnitTarget] = {}
        for name, sums in self._sums.items():
            targets, mean, squares = sums[0] / draws, sums[1] / self._runs, sums[2] / self._runs
            if not self._taps[name][0].channels_last:
                targets = np.ascontiguousarray(np.moveaxis(targets, 1, 2))  # (N, M, C)
            found[name] = UnitTarget(self.chosen[name], targets, np.maximum(squares - mean**2, 0))
        return found


def match(
    graph: gs.Graph,
    units: Sequence[Unit],
    targets: Mapping[str, UnitTarget],
    samples: SampleSet,
    shapes: Mapping[str, tuple[int, ...]],
    open_model: OpenModel,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> dict[str, MatchedUnit]:
    """Solves unit after unit, each downstream of those that are solved.

    Args:
        graph: not changed.
        units: of the graph; the last layers are left out, for no activation there gives a target.
        targets: by the name of the unit; a module with a unit without one is unchanged.
        samples: the ones that the targets are of, in the same order.
        shapes: of the tensors in a run of the first batch.
        open_model: the runtime.
        max_memory: bytes that the process may hold; activations beyond go to the disk.

    Returns:
        The solutions, by the name of the unit, in the order of the graph; the units of one module share one.
    """
    modules = [uses for uses in by_module(units) if all(unit.name in targets and not unit.is_last for unit in uses)]
    chosen = [unit for uses in modules for unit in uses]
    copy = _Copy(graph, chosen, shapes)
    size = samples_in(samples.batches[0])
    held_out = held_out_rows(len(samples))
    found: dict[str, MatchedUnit] = {}
    with ActivationCache(max_memory) as cache:
        run = StagedRun(copy.graph, samples.batches, open_model, cache)
        parts = plan_stages(copy.graph, copy.targets(), [])
        with progress.stage("matching layer by layer", len(modules)) as matching:
            for stage in run.stages(parts):
                seen = _collect(run, stage, targets, shapes, size, len(samples))
                for target in stage.measured:
                    units_of_module = [affine.unit for affine in target.item]
                    solved = solve_unit(
                        [UnitUse(unit.activation, seen[unit.name], targets[unit.name]) for unit in units_of_module],
                        held_out,
                    )
                    for affine in target.item:
                        affine.write(solved.parameters.scale, solved.parameters.shift)
                    found |= dict.fromkeys([unit.name for unit in units_of_module], solved)
                    matching.step()
    return found


class _Copy:
    """A copy of the graph with y = a z + b downstream of each unit."""

    def __init__(self, graph: gs.Graph, units: Sequence[Unit], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.graph = graph.copy()
        tensors = self.graph.tensors()
        self._units = [_moved(unit, tensors) for unit in units]
        self.free = insert_affine(self.graph, self._units, shapes)
        RemoveMarkers()(self.graph)

    def targets(self) -> list[Target[tuple[FreeAffine, ...]]]:
        """The tensors to measure, and the nodes that wait for them: all the units of a module at once."""
        of_unit = {affine.unit.name: affine for affine in self.free}
        modules = [tuple(of_unit[unit.name] for unit in uses) for uses in by_module(self._units)]
        return [
            Target(
                module,
                tuple(tensor for affine in module for tensor in (affine.z, *affine.unit.activation.sides)),
                tuple(affine.nodes[0] for affine in module),
            )
            for module in modules
        ]


def _moved(unit: Unit, tensors: Mapping[str, Tensor]) -> Unit:
    """The unit in a copy of its graph."""
    activation = unit.activation
    z = tensors[unit.z.name]
    nodes = []
    for node in activation.nodes:
        output = tensors[node.outputs[0].name]
        nodes.append(output.inputs[0])
    moved = Activation(
        z,
        tensors[activation.output.name],
        tuple(nodes),
        tuple(_upstream_of_markers(tensors[side.name]) for side in activation.sides),
    )
    assert isinstance(z, gs.Variable)
    return Unit(unit.name, z, unit.axis, unit.channels, moved, unit.batch_norm, unit.layer, unit.is_last)


def _upstream_of_markers(tensor: Tensor) -> Tensor:
    """The tensor that is equal with the noise off: the markers that it went through are bypassed."""
    while tensor.inputs and is_dropout(tensor.inputs[0]):
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _collect(
    run: StagedRun,
    stage: Stage[tuple[FreeAffine, ...]],
    targets: Mapping[str, UnitTarget],
    shapes: Mapping[str, tuple[int, ...]],
    size: int,
    samples: int,
) -> dict[str, SeenUnit]:
    """Runs one stage; returns the chosen positions of the tensors that its units read."""
    taps: dict[str, dict[str, PositionTap]] = {}
    measured = [affine for target in stage.measured for affine in target.item]
    for affine in measured:
        unit = affine.unit
        shape, chosen = shapes[unit.z.name], targets[unit.name].chosen
        taps[unit.name] = {
            tensor.name: tap_positions(tensor, shape, size, unit.axis, chosen, f".{unit.name}")
            for tensor in (affine.z, *unit.activation.sides)
        }
    every = [tap for of_unit in taps.values() for tap in of_unit.values()]

    def read(number: int, arrays: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
        return {name: {tensor: tap.read(arrays) for tensor, tap in of_unit.items()} for name, of_unit in taps.items()}

    read_values: dict[str, dict[str, Float64Array]] = {name: {} for name in taps}
    nodes, outputs = [node for tap in every for node in tap.nodes], [tap.output for tap in every]
    for first, found in run.run_stage(stage, nodes, outputs, read):
        for name, of_unit in found.items():
            for tensor, values in of_unit.items():
                if tensor not in read_values[name]:
                    read_values[name][tensor] = np.empty((samples, *values.shape[1:]))
                read_values[name][tensor][first : first + len(values)] = values
    return {
        affine.unit.name: SeenUnit(
            read_values[affine.unit.name][affine.z.name],
            {side.name: read_values[affine.unit.name][side.name] for side in affine.unit.activation.sides},
        )
        for affine in measured
    }
