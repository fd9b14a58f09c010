"""Folds a BatchNorm into the downstream linear layer, or into all of them where several read it.

    W (g X + s) + b = (W g) X + (b + W s)         with g = gamma / sqrt(var + epsilon), s = beta - g mean

W s is what the layer makes of an input that is s everywhere, and that is where it ends: a convolution that pads its
input puts 0 around g X + s, not around X, so that at the border W s is another number. Such a layer is skipped,
unless s is 0. (A Pad with -s / g upstream would be exact, but ONNX pads all channels with one value; an Add upstream
and one downstream would cost as much as the BatchNorm.) A ConvTranspose reaches each position with another part of its
kernel; it is skipped too, unless s is 0 or the kernel is a point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import is_standard
from vsfix.graph_passes.ir.rounding import RoundingError, round_channels, round_outputs
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.ir.stored_values import stored_values
from vsfix.graph_passes.ir.subgraphs import GraphTree

from .candidates import FoldCandidate
from .channel_map import VIEWS, ChannelMap
from .linear_layer import LINEAR_OPERATORS, LinearLayer, read_linear_layer


@dataclass(frozen=True, eq=False)
class LayerFold:
    """One downstream layer, the node that reads the BatchNorm for it, and the layer's new numbers."""

    layer: LinearLayer
    reader: gs.Node
    weight: Array
    biases: list[Array]


@dataclass(frozen=True, eq=False)
class ForwardFold:
    """A fold that may be done: into every layer that reads the BatchNorm."""

    parts: list[LayerFold]

    def apply(self, tree: GraphTree, candidate: FoldCandidate) -> str:
        """Applies the fold; returns the action for the report."""
        batch_norm = candidate.batch_norm
        data = batch_norm.input
        tree.take_out(candidate.graph, batch_norm.node)
        labels = []
        for part in self.parts:
            part.reader.inputs[0] = data
            part.layer.write(tree, candidate.graph, batch_norm.name, part.weight, part.biases)
            labels.append(f"{part.layer.node.op} '{part.layer.node.name or part.layer.node.op}'")
        return f"folded into the downstream {', '.join(labels)}"


def decide_forward(tree: GraphTree, channel_map: ChannelMap, candidate: FoldCandidate) -> ForwardFold | str:
    """The fold into all consumers, or the reason why there is none."""
    output = candidate.batch_norm.output
    if tree.is_returned(output) or not output.outputs:
        return tree.obstacle(output, "its output") or "nothing reads its output"
    parts = []
    for reader in output.outputs:
        part = _decide_reader(tree, channel_map, candidate, reader)
        if isinstance(part, str):
            return part
        parts.append(part)
    return ForwardFold(parts)


def _decide_reader(
    tree: GraphTree, channel_map: ChannelMap, candidate: FoldCandidate, reader: gs.Node
) -> LayerFold | str:
    """The fold into the layer that one reader of the BatchNorm is or leads to, or the reason why there is none."""
    found = _downstream_layer(tree, candidate, reader)
    if isinstance(found, str):
        return found
    layer, views = found
    batch_norm = candidate.batch_norm
    if layer.node.op == "Gemm" and layer.node.attrs.get("transA", 0):
        return "the downstream Gemm reads its input transposed (transA)"
    channels = channel_map.follow(batch_norm.output, 1, batch_norm.channels, views, layer.axis)
    if isinstance(channels, str):
        return channels
    if len(channels) != layer.inputs:
        return f"the downstream {layer.node.op} reads {layer.inputs} channels, the BatchNorm has {len(channels)}"
    g, s = (row[channels] for row in (batch_norm.scale, batch_norm.shift))
    reason = _border(layer) if np.any(s) else None
    try:
        return reason or _numbers(layer, reader, g, s)
    except RoundingError as error:
        return str(error)


def _numbers(layer: LinearLayer, reader: gs.Node, g: Float64Array, s: Float64Array) -> LayerFold:
    """The new weight and biases.

    Raises:
        RoundingError: they would not be finite, or lose their digits.
    """
    dtype = stored_values(layer.weight).dtype
    for row in (g, s):
        round_channels(row, np.float64)
    with np.errstate(all="ignore"):
        biases = [layer.bias_values(bias) for bias in layer.biases] or [np.zeros(())]
        biases[-1] = biases[-1] + layer.response(s)
        weight = layer.scaled_inputs(g)
    try:
        round_outputs(layer.by_output(weight), dtype)
        rounded = [round_channels(values, dtype) for values in biases]
    except RoundingError as error:
        raise RoundingError(f"in the downstream {layer.node.op}, {error}") from error
    return LayerFold(layer, reader, weight.astype(dtype), rounded)


def _border(layer: LinearLayer) -> str | None:
    """Why a shift of the input is not one value a channel at the output, or None."""
    node, point = layer.node, all(side == 1 for side in layer.kernel)
    if node.op == "Conv":
        padding = str(node.attrs.get("auto_pad", "NOTSET"))
        padded = any(node.attrs.get("pads", ())) if padding == "NOTSET" else padding != "VALID" and not point
        return "the downstream Conv pads with zeros, which the shift of the BatchNorm would change" if padded else None
    if node.op == "ConvTranspose":
        simple = point and all(step == 1 for step in node.attrs.get("strides", (1,)))
        plain = not any((*node.attrs.get("pads", ()), *node.attrs.get("output_padding", ())))
        if not (simple and plain and "output_shape" not in node.attrs):
            return "the downstream ConvTranspose reaches each position with another part of its kernel"
    return None


def _downstream_layer(
    tree: GraphTree, candidate: FoldCandidate, reader: gs.Node
) -> tuple[LinearLayer, list[gs.Node]] | str:
    """The layer and the nodes between the BatchNorm and it, in order; or the obstacle."""
    views: list[gs.Node] = []
    tensor, node = candidate.batch_norm.output, reader
    while True:
        if not tree.stands_in(node, candidate.graph):
            return f"its output is read by {node.op} in another subgraph"
        reads_once = node.inputs[0] is tensor and sum(other is tensor for other in node.inputs) == 1
        if not reads_once or not is_standard(node) or node.op not in {*LINEAR_OPERATORS, *VIEWS}:
            return f"its output goes to {node.op}"
        if node.op in LINEAR_OPERATORS:
            layer = read_linear_layer(tree, node)
            return layer if isinstance(layer, str) else (layer, views)
        views.append(node)
        tensor = node.outputs[0]
        obstacle = tree.obstacle(tensor, f"the output of the downstream {node.op}")
        if obstacle is not None:
            return obstacle
        node = tensor.outputs[0]
