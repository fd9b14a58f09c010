"""Folds a BatchNorm into the linear layer upstream of it.

    Y = gamma (W x + b - mean) / sqrt(var + epsilon) + beta
      = (g W) x + (g (b - mean) + beta)          with g = gamma / sqrt(var + epsilon), one value a channel

Between the two may stand nodes that only move axes; g then belongs to the channel of the layer that arrives at each
channel of the BatchNorm. A Flatten that makes a channel of each position leaves statistics for each; that
BatchNorm is skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import Tensor, is_standard, upstream_constant
from vsfix.graph_passes.ir.rounding import RoundingError, round_channels, round_outputs
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.ir.stored_values import stored_values
from vsfix.graph_passes.ir.subgraphs import GraphTree

from .candidates import FoldCandidate
from .channel_map import VIEWS, ChannelMap, Channels, by_channel
from .linear_layer import LINEAR_OPERATORS, LinearLayer, read_linear_layer


@dataclass(frozen=True, eq=False)
class BackwardFold:
    """A fold that may be done: the layer and its new numbers."""

    layer: LinearLayer
    weight: Array
    biases: list[Array]

    def apply(self, tree: GraphTree, candidate: FoldCandidate) -> str:
        """Applies the fold; returns the action for the report."""
        batch_norm = candidate.batch_norm
        tensor, output = batch_norm.input, batch_norm.output
        tree.take_out(candidate.graph, batch_norm.node)
        label = self.write(tree, candidate.graph, batch_norm.name)
        tensor.inputs[0].outputs[0] = output
        return f"folded into {label}"

    def write(self, tree: GraphTree, graph: gs.Graph, name: str) -> str:
        """Puts the numbers into the layer; `name` names new constants. Returns the layer in words."""
        self.layer.write(tree, graph, name, self.weight, self.biases)
        return f"{self.layer.node.op} '{self.layer.node.name or self.layer.node.op}'"


def decide_backward(tree: GraphTree, channel_map: ChannelMap, candidate: FoldCandidate) -> BackwardFold | str:
    """The fold into the upstream layer, or the reason why there is none."""
    batch_norm = candidate.batch_norm
    upstream = find_upstream_layer(tree, channel_map, candidate.graph, batch_norm.input)
    if isinstance(upstream, str):
        return upstream
    if len(upstream.channels) != batch_norm.channels:
        operator, channels = upstream.layer.node.op, len(upstream.channels)
        return f"the upstream {operator} has {channels} channels, the BatchNorm {batch_norm.channels}"
    return fold_into(upstream, batch_norm.scale, batch_norm.mean, batch_norm.beta)


@dataclass(frozen=True, eq=False)
class UpstreamLayer:
    """A layer that a tensor comes from.

    Attributes:
        layer: which one.
        views: the nodes in between, in order.
        channels: the channel of the layer that arrives at each channel of the tensor, shape (C,).
    """

    layer: LinearLayer
    views: list[gs.Node]
    channels: Channels


def find_upstream_layer(
    tree: GraphTree, channel_map: ChannelMap, graph: gs.Graph, tensor: Tensor
) -> UpstreamLayer | str:
    """The layer that a tensor of a graph comes from and that nothing else reads; or the obstacle."""
    found = _upstream_layer(tree, graph, tensor)
    if isinstance(found, str):
        return found
    layer, views = found
    channels = channel_map.follow(layer.last.outputs[0], layer.axis, layer.outputs, views, 1)
    return channels if isinstance(channels, str) else UpstreamLayer(layer, views, channels)


def fold_into(
    upstream: UpstreamLayer, scale: Float64Array, mean: Float64Array, beta: Float64Array
) -> BackwardFold | str:
    """The fold of Y = scale (X - mean) + beta, each of shape (C,), into a layer; or why it can't be done."""
    layer = upstream.layer
    g, m, b = (by_channel(row, upstream.channels, layer.outputs) for row in (scale, mean, beta))
    if g is None or m is None or b is None:
        between = ", ".join(view.op for view in upstream.views)
        return f"{between} in between gives the positions of a channel their own statistics"
    try:
        return _numbers(layer, g, m, b)
    except RoundingError as error:
        return str(error)


def _numbers(layer: LinearLayer, g: Float64Array, mean: Float64Array, beta: Float64Array) -> BackwardFold:
    """The new weight and biases.

    Raises:
        RoundingError: they would not be finite, or lose their digits.
    """
    dtype = stored_values(layer.weight).dtype
    with np.errstate(all="ignore"):
        inner = [g * layer.bias_values(bias) for bias in layer.biases[:-1]]
        last = layer.bias_values(layer.biases[-1]) if layer.biases else np.zeros(())
        folded = [*inner, g * (last - mean) + beta]  # (..., C_out)
        weight = layer.scaled_outputs(g)
    by_output = layer.by_output(weight)  # (C_out, everything else)
    round_outputs(by_output, dtype)
    return BackwardFold(layer, weight.astype(dtype), [round_channels(values, dtype) for values in folded])


def _upstream_layer(tree: GraphTree, graph: gs.Graph, tensor: Tensor) -> tuple[LinearLayer, list[gs.Node]] | str:
    """The layer and the nodes between it and the tensor, in order; or the obstacle."""
    views: list[gs.Node] = []
    while True:
        if not tensor.inputs:
            return _no_producer(tree, graph, tensor)
        node = tensor.inputs[0]
        if not tree.stands_in(node, graph):
            return f"its input comes from {node.op} outside of the subgraph that it stands in"
        operator = _operator_of(tree, node)
        if isinstance(operator, str):
            return operator
        standard = is_standard(node)
        if operator is None and not (standard and node.op in VIEWS):
            return f"its input comes from {node.op}, which is no linear layer"
        obstacle = tree.obstacle(tensor, f"the output of the upstream {node.op}")
        if obstacle is not None:
            return obstacle
        if operator is not None:
            layer = read_linear_layer(tree, operator)
            return layer if isinstance(layer, str) else (layer, views)
        views.insert(0, node)
        tensor = node.inputs[0]


def _no_producer(tree: GraphTree, graph: gs.Graph, tensor: Tensor) -> str:
    """Why a tensor that no node writes has no upstream layer."""
    if upstream_constant(tensor) is not None:
        return "its input is a constant"
    return f"its input is an input of the {'graph' if graph is tree.root else 'subgraph that it stands in'}"


def _operator_of(tree: GraphTree, node: gs.Node) -> gs.Node | str | None:
    """The linear operator that `node` is, or whose bias it adds; a reason where one is near but out of reach."""
    if not is_standard(node):
        return None
    if node.op in LINEAR_OPERATORS:
        return node
    if node.op != "Add":
        return None
    for tensor, other in (node.inputs, reversed(node.inputs)):
        if upstream_constant(other) is None or len(tensor.inputs) != 1 or tensor.inputs[0].op not in LINEAR_OPERATORS:
            continue
        operator = tensor.inputs[0]
        if not is_standard(operator):
            continue
        obstacle = tree.obstacle(tensor, f"the output of the upstream {operator.op}")
        if obstacle is not None:
            return obstacle
        layer = read_linear_layer(tree, operator)
        if isinstance(layer, str):
            return layer
        return (
            operator
            if layer.last is node
            else f"the Add downstream of {operator.op} adds other than one value a channel"
        )
    return None
