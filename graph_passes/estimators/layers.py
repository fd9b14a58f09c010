"""The distance of each unit of a deployed network from the averaged one, and its input with the noise off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.io.model_file import export_subgraph
from vsfix.graph_passes.ir.graph import Tensor
from vsfix.graph_passes.ir.runtime import Float64Array, OpenModel, side_by_side
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.graph_passes.noise_average.samples import SampleSet
from vsfix.graph_passes.noise_average.taps import PositionTap, tap_positions
from vsfix.graph_passes.statistics.batches import samples_in

from .unit_fit import UnitTarget
from .units import Unit


@dataclass(frozen=True)
class DeployedUnit:
    """The values of one unit with the noise off.

    Attributes:
        z: at the positions of its target, shape (N, M, C).
        distance: mean squared distance of the output of its activation from the mean of the passes with the noise on,
            over the variance of that mean; 0 is equal.
    """

    z: Float64Array
    distance: float


def deployed_units(
    graph: gs.Graph,
    units: Sequence[Unit],
    targets: Mapping[str, UnitTarget],
    samples: SampleSet,
    shapes: Mapping[str, tuple[int, ...]],
    open_model: OpenModel,
) -> dict[str, DeployedUnit]:
    """Runs a network with its noise off and looks at its units.

    Args:
        graph: not changed; the tensors of the units have the names that they have in `units`.
        units: those without a target are left out.
        targets: by the name of the unit.
        samples: the ones that the targets are of, in the same order.
        shapes: of the tensors in a run of the first batch.
        open_model: the runtime.
    """
    copy = graph.copy()
    producers = {tensor.name: (node, index) for node in copy.nodes for index, tensor in enumerate(node.outputs)}
    RemoveMarkers()(copy)

    def written(name: str) -> Tensor:  # a marker that wrote an output left its name to the tensor upstream
        node, index = producers[name]
        tensor: Tensor = node.outputs[index]
        return tensor

    size = samples_in(samples.batches[0])
    taps: dict[str, tuple[PositionTap, PositionTap]] = {}
    for unit in units:
        if unit.name not in targets:
            continue
        chosen, shape = targets[unit.name].chosen, shapes[unit.z.name]
        z = tap_positions(written(unit.z.name), shape, size, unit.axis, chosen)
        h = z
        if unit.activation.output is not unit.z:
            h = tap_positions(written(unit.activation.output.name), shape, size, unit.axis, chosen)
        taps[unit.name] = (z, h)
    every = [tap for pair in taps.values() for tap in dict.fromkeys(pair)]
    nodes = [*copy.nodes, *(node for tap in every for node in tap.nodes)]
    model = export_subgraph(copy, nodes, copy.inputs, [tap.output for tap in every])
    values: dict[str, list[Float64Array]] = {name: [] for name in taps}
    results: dict[str, list[Float64Array]] = {name: [] for name in taps}
    with open_model(model) as runner:

        def run(number: int) -> dict[str, tuple[Float64Array, Float64Array]]:
            batch = samples.batches[number]
            arrays = runner.run({tensor.name: batch[tensor.name] for tensor in copy.inputs})
            return {
                name: (z.read(arrays).astype(np.float64), h.read(arrays).astype(np.float64))
                for name, (z, h) in taps.items()
            }

        for found in side_by_side(run, range(len(samples.batches)), runner.concurrency):
            for name, (z_values, h_values) in found.items():
                values[name].append(z_values)
                results[name].append(h_values)
    return {
        name: DeployedUnit(np.concatenate(values[name]), _distance(np.concatenate(results[name]), targets[name]))
        for name in taps
    }


def _distance(found: Float64Array, target: UnitTarget) -> float:
    """The mean squared distance from the target over its variance; 0 where no channel varies."""
    variance = target.mean.var(axis=(0, 1))  # (C,)
    alive = variance > 0
    if not alive.any():
        return 0.0
    squares = ((found - target.mean) ** 2).mean(axis=(0, 1))
    return float((squares[alive] / variance[alive]).mean())
