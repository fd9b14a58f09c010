"""The units of a network, whose scale and shift are free: one pair (a, b) for each channel, y = a z + b.

    BatchNorm        z is its output; written as scale <- a scale, shift <- a shift + b; a module that is used several
                     times has one unit for each use, and all of them have the same a and b
    linear layer     a Conv, ConvTranspose, Gemm or MatMul whose output goes into a non-linearity without a BatchNorm in
                     between (there was none, or it was folded away): weight <- a weight, bias <- a bias + b
    last layer       the linear layer that writes an output, as above; its b alone is free, and only end to end

Units are those that noise reaches. While they are sought, y = a z + b stands in a copy of the graph as Mul and Add with
constants of their own; nothing else of the deployed graph changes, and so it costs nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm, find_modules
from vsfix.graph_passes.folding.linear_layer import LINEAR_OPERATORS, LinearLayer, read_linear_layer
from vsfix.graph_passes.ir.element_types import state_types
from vsfix.graph_passes.ir.graph import is_graph_output, is_standard, name_of
from vsfix.graph_passes.ir.graph_pass import Change
from vsfix.graph_passes.ir.rounding import round_channels
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.ir.stored_values import stored_values
from vsfix.graph_passes.ir.subgraphs import GraphTree
from vsfix.graph_passes.noise.propagation import NoisePropagation

from .activations import Activation, GraphOrder, find_activation

_TO_OUTPUT = frozenset(
    "Identity Cast Reshape Flatten Squeeze Unsqueeze Transpose Softmax LogSoftmax Sigmoid GlobalAveragePool".split()
)


@dataclass(frozen=True, eq=False)
class Unit:
    """A tensor with a free scale and shift.

    Attributes:
        name: of the BatchNorm, or of this use of it, or of the linear layer.
        z: the tensor that is scaled and shifted.
        axis: of its channels, 1 or -1.
        channels: C.
        activation: that follows it.
        batch_norm: the BatchNorm with all of its uses; None for a linear layer.
        layer: the linear layer; None for a BatchNorm.
        is_last: the layer that writes an output.
    """

    name: str
    z: gs.Variable
    axis: int
    channels: int
    activation: Activation
    batch_norm: BatchNorm | None = None
    layer: LinearLayer | None = None
    is_last: bool = False

    @property
    def module(self) -> str:
        """The name that the units with the same scale and shift share."""
        return self.name if self.batch_norm is None else self.batch_norm.name


def by_module(units: Sequence[Unit]) -> list[list[Unit]]:
    """The units that have one scale and one shift together, in the order of the first of each."""
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.module, []).append(unit)
    return list(groups.values())


def find_units(graph: gs.Graph, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Unit, ...]:
    """The units that noise reaches, in the order of the graph.

    Args:
        graph: with its markers.
        shapes: of its tensors in one run, by name.
    """
    states = NoisePropagation(graph).states
    order = _order(graph, shapes)
    tree = GraphTree(graph)
    reached = [module for module in find_modules(graph) if any(id(use.input) in states for use in module.uses)]
    by_node = {id(use.node): (use, module) for module in reached for use in module.uses}
    units: dict[str, Unit] = {}
    for node in graph.nodes:
        unit = None
        if id(node) in by_node:
            unit = _batch_norm_unit(*by_node[id(node)], order)
        elif node.op in LINEAR_OPERATORS and is_standard(node) and id(node.inputs[0]) in states:
            unit = _linear_unit(tree, graph, node, order)
        if unit is not None and unit.z.name in shapes:
            units.setdefault(unit.name, unit)
    return tuple(units.values())


def _order(graph: gs.Graph, shapes: Mapping[str, tuple[int, ...]]) -> GraphOrder:
    """The order of a graph that the search for activations needs."""
    position = {id(node): number for number, node in enumerate(graph.nodes)}
    return GraphOrder(position, {id(tensor) for tensor in graph.outputs}, shapes)


def _batch_norm_unit(use: BatchNorm, module: BatchNorm, order: GraphOrder) -> Unit:
    """The unit of a BatchNorm, or of one use of it."""
    z = use.node.outputs[0]
    activation = find_activation(z, 1, order)
    if module.others and activation.sides:  # the addend may come from another use, which waits for the same a and b
        activation = Activation(z, z)
    return Unit(use.name, z, 1, use.channels, activation, module)


def _linear_unit(tree: GraphTree, graph: gs.Graph, node: gs.Node, order: GraphOrder) -> Unit | None:
    """The unit of a linear layer, where a non-linearity or the output follows it."""
    layer = read_linear_layer(tree, node)
    if isinstance(layer, str):
        return None
    z = layer.last.outputs[0]
    activation = find_activation(z, layer.axis, order)
    last = _writes_output(graph, z)
    if not last and activation.is_linear:
        return None
    if last and activation.output is not z:  # a sigmoid or a scale of the output belongs to the compared scores
        activation = Activation(z, z)
    return Unit(name_of(node), z, layer.axis, layer.outputs, activation, layer=layer, is_last=last)


def _writes_output(graph: gs.Graph, tensor: gs.Variable) -> bool:
    """Whether a tensor is an output of the graph, but for views and the function of the scores."""
    while not is_graph_output(graph, tensor):
        readers = list(tensor.outputs)
        if len(readers) != 1 or readers[0].op not in _TO_OUTPUT or not is_standard(readers[0]):
            return False
        tensor = readers[0].outputs[0]
    return True


@dataclass(frozen=True, eq=False)
class FreeAffine:
    """y = a z + b as two nodes of a graph.

    Attributes:
        unit: of the graph before they were put in; its z is renamed, and its readers read y.
        z: the tensor that is scaled.
        scale: a, of a shape that broadcasts against z.
        shift: b, of the same shape.
        nodes: Mul and Add.
    """

    unit: Unit
    z: gs.Variable
    scale: gs.Constant
    shift: gs.Constant
    nodes: tuple[gs.Node, gs.Node]

    def write(self, a: Float64Array, b: Float64Array) -> None:
        """Sets a and b, each of shape (C,)."""
        for constant, values in ((self.scale, a), (self.shift, b)):
            old = stored_values(constant)
            constant.values = values.astype(old.dtype).reshape(old.shape)


def insert_affine(graph: gs.Graph, units: Sequence[Unit], shapes: Mapping[str, tuple[int, ...]]) -> list[FreeAffine]:
    """Puts a = 1 and b = 0 downstream of the z of each unit; y takes the name of z, so that outputs keep theirs.

    The units of one module read the same two constants.
    """
    state_types(graph)
    inserted: list[FreeAffine] = []
    constants: dict[tuple[str, int], tuple[gs.Constant, gs.Constant]] = {}
    for number, unit in enumerate(units):
        y, dtype = unit.z, unit.z.dtype or np.dtype(np.float32)
        z = gs.Variable(f"vsfix.z_{number}", dtype=y.dtype, shape=y.shape)
        producer = y.inputs[0]
        producer.outputs[next(index for index, tensor in enumerate(producer.outputs) if tensor is y)] = z
        sides = [1] * len(shapes[unit.z.name])
        sides[unit.axis] = unit.channels
        own = (
            gs.Constant(f"vsfix.scale_{number}", np.ones(sides, dtype=dtype)),
            gs.Constant(f"vsfix.shift_{number}", np.zeros(sides, dtype=dtype)),
        )
        scale, shift = constants.setdefault((unit.module, len(sides)), own)
        product = gs.Variable(f"vsfix.scaled_{number}", dtype=y.dtype, shape=y.shape)
        multiply = gs.Node("Mul", f"vsfix.multiply_{number}", inputs=[z, scale], outputs=[product])
        add = gs.Node("Add", f"vsfix.add_{number}", inputs=[product, shift], outputs=[y])
        position = next(index for index, node in enumerate(graph.nodes) if node is producer)
        graph.nodes[position + 1 : position + 1] = [multiply, add]
        inserted.append(FreeAffine(unit, z, scale, shift, (multiply, add)))
    return inserted


@dataclass(frozen=True)
class InputMoments:
    """The change of mean and variance of a BatchNorm's z from noise on to noise off, from the same samples.

    z is scale x + shift of the input x, so that x has the same ratio, and moves by the sign of the scale times `move`.

    Attributes:
        log_ratio: log(Var_off / Var_on), shape (C,); 0 where a variance is unknown.
        move: (Mean_off - Mean_on) / sqrt(Var_on), shape (C,); 0 likewise.
    """

    log_ratio: Float64Array
    move: Float64Array


@dataclass(frozen=True)
class FoundParameters:
    """The parameters that one unit should have.

    Attributes:
        scale: a, shape (C,), above 0.
        shift: b, shape (C,).
        moments: of a BatchNorm's input; None for a linear layer, or for unchanged statistics.
    """

    scale: Float64Array
    shift: Float64Array
    moments: InputMoments | None = None

    @property
    def changed(self) -> int:
        """The channels that compute something else than before."""
        return int(np.sum((self.scale != 1) | (self.shift != 0)))


def write_parameters(
    graph: gs.Graph, units: Sequence[Unit], found: Mapping[str, FoundParameters]
) -> tuple[Change, ...]:
    """Writes a and b into the BatchNorms and the linear layers of a graph.

    A BatchNorm is written with the moments that its input has with the noise off, so that the stored statistics agree
    with the data; its scale and shift take up the difference:

        s = sqrt(var + eps)    scale' = a scale s' / s    shift' = a (shift + scale (mean' - mean) / s) + b

    Args:
        graph: the one that the units are of; edited in place.
        units: as `find_units` gave them.
        found: by the name of the unit; of a module that is used several times those of its first unit are written.

    Raises:
        ModelError: a parameter that is not finite in its type.
        RoundingError: a parameter of a linear layer that is not finite in its type.
    """
    tree = GraphTree(graph)
    changes = []
    for unit, *_ in by_module(units):
        parameters = found.get(unit.name)
        if parameters is None or (parameters.moments is None and not parameters.changed):
            continue
        if unit.batch_norm is not None:
            _write_batch_norm(unit.batch_norm, parameters)
        elif unit.layer is not None:
            _write_layer(tree, graph, unit, parameters)
        changes.append(Change(unit.module, f"repaired in {parameters.changed} of {unit.channels} channels"))
    return tuple(changes)


def _write_batch_norm(batch_norm: BatchNorm, found: FoundParameters) -> None:
    """Writes the moments, and the scale and shift that take up the difference."""
    mean, variance = batch_norm.mean, batch_norm.variance
    if found.moments is not None:
        move = np.sign(batch_norm.gamma) * found.moments.move
        mean = mean + move * np.sqrt(np.maximum(batch_norm.variance, 0))
        variance = variance * np.exp(found.moments.log_ratio)
    dtype = stored_values(batch_norm.parameters[2]).dtype
    mean, variance = mean.astype(dtype).astype(np.float64), variance.astype(dtype).astype(np.float64)
    before = np.sqrt(batch_norm.variance + batch_norm.epsilon)
    gamma = found.scale * batch_norm.gamma * np.sqrt(variance + batch_norm.epsilon) / before
    beta = found.scale * (batch_norm.beta + batch_norm.gamma * (mean - batch_norm.mean) / before) + found.shift
    batch_norm.with_parameters(gamma, beta, mean, variance)


def _write_layer(tree: GraphTree, graph: gs.Graph, unit: Unit, found: FoundParameters) -> None:
    """Writes a into the weight, and a and b into the biases."""
    assert unit.layer is not None
    layer = unit.layer
    dtype = stored_values(layer.weight).dtype
    inner = [found.scale * layer.bias_values(bias) for bias in layer.biases[:-1]]
    last = layer.bias_values(layer.biases[-1]) if layer.biases else np.zeros(())
    biases = [round_channels(values, dtype) for values in (*inner, found.scale * last + found.shift)]
    weight = layer.scaled_outputs(found.scale)
    layer.write(tree, graph, unit.name, round_channels(weight, dtype), biases)
