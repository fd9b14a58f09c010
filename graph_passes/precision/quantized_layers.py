"""The layers of a graph that compute on quantised operands, and the scales of their weights.

A quantised layer reads its data and its weight through DequantizeLinear:

    data -> QuantizeLinear -> DequantizeLinear -+
    weight [-> QuantizeLinear] -> DequantizeLinear -> Conv, ConvTranspose, Gemm or MatMul

A weight that BatchNorm was folded into has channels of very different size: one scale for all of them (per tensor)
leaves the small ones without digits, so each output channel must have its own (per channel).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.ir.graph import Tensor, name_of, subgraphs_of, upstream_constant
from vsfix.graph_passes.ir.stored_values import stored_values

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PAIR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class QuantizedLayers:
    """The layers of a graph that have a weight.

    Attributes:
        quantized: nodes whose data and weight are quantised.
        plain: nodes that compute in floating point.
        per_tensor: of the quantised ones, those with one scale for a weight of several output channels.
        split: BatchNorms that alone read the output of a layer, but through Q/DQ, which keeps every runtime from
            folding them.
    """

    quantized: tuple[str, ...]
    plain: tuple[str, ...]
    per_tensor: tuple[str, ...]
    split: tuple[str, ...]

    @property
    def total(self) -> int:
        """The number of layers that have a weight."""
        return len(self.quantized) + len(self.plain)


def find_quantized_layers(graph: gs.Graph) -> QuantizedLayers:
    """Looks at every layer of the main graph whose weight is a constant, quantised or not."""
    quantized, plain, per_tensor, split = [], [], [], []
    for node in graph.nodes:
        name = name_of(node)
        if node.op == "BatchNormalization" and _reads_quantized_layer(node):
            split.append(name)
        if node.op not in _LAYERS or not _has_constant_weight(node):
            continue
        data, weight = (_dequantizer(tensor) for tensor in node.inputs[:2])
        if data is None or weight is None:
            plain.append(name)
            continue
        quantized.append(name)
        if _channels(node, weight) > 1 and not _is_per_channel(node, weight):
            per_tensor.append(name)
    return QuantizedLayers(tuple(quantized), tuple(plain), tuple(per_tensor), tuple(split))


def _dequantizer(tensor: Tensor) -> gs.Node | None:
    """The DequantizeLinear that writes a tensor."""
    node = tensor.inputs[0] if tensor.inputs else None
    return node if node is not None and node.op == "DequantizeLinear" else None


def _has_constant_weight(node: gs.Node) -> bool:
    """Whether the second input comes from a constant, through quantisation or not."""
    return _weight(node.inputs[1]) is not None


def _weight(tensor: Tensor) -> gs.Constant | None:
    """The constant upstream of a weight."""
    while True:
        constant = upstream_constant(tensor)
        producer = tensor.inputs[0] if tensor.inputs else None
        if constant is not None or producer is None or producer.op not in _PAIR:
            return constant
        tensor = producer.inputs[0]


def _channel_axis(node: gs.Node, rank: int) -> int:
    """The axis of the output channels in a weight."""
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1
    return 0 if node.op == "Gemm" and node.attrs.get("transB", 0) else rank - 1


def _channels(node: gs.Node, dequantizer: gs.Node) -> int:
    """The number of output channels in a weight, of one group."""
    weight = _weight(dequantizer.outputs[0])
    return int(weight.shape[_channel_axis(node, len(weight.shape))]) if weight is not None and weight.shape else 1


def _is_per_channel(node: gs.Node, dequantizer: gs.Node) -> bool:
    """Whether a weight has a scale for each output channel."""
    weight, scale = _weight(dequantizer.outputs[0]), upstream_constant(dequantizer.inputs[1])
    if weight is None or scale is None or len(scale.shape) != 1:
        return False
    axis = int(dequantizer.attrs.get("axis", 1)) % len(weight.shape)
    wanted = _channel_axis(node, len(weight.shape))
    return axis == wanted and int(scale.shape[0]) == int(weight.shape[wanted])


def _reads_quantized_layer(node: gs.Node) -> bool:
    """Whether Q and DQ stand between a layer and a BatchNorm, and nothing else reads the tensors between them."""
    dequantizer = _dequantizer(node.inputs[0])
    quantizer = dequantizer.inputs[0].inputs if dequantizer is not None else ()
    if not quantizer or quantizer[0].op != "QuantizeLinear":
        return False
    chain = (quantizer[0].inputs[0], quantizer[0].outputs[0], node.inputs[0])
    producer = chain[0].inputs
    return bool(producer) and producer[0].op in _LAYERS and all(len(tensor.outputs) == 1 for tensor in chain)


def quantized_nodes(graph: gs.Graph) -> tuple[str, ...]:
    """The names of the nodes of the main graph that read quantised tensors, in its order."""
    readers = (node for node in graph.nodes if node.op not in _PAIR and not subgraphs_of(node))
    return tuple(name_of(node) for node in readers if any(_dequantizer(tensor) for tensor in node.inputs))


def leave_unquantized(graph: gs.Graph, original: gs.Graph, names: Collection[str]) -> None:
    """Lets some nodes read what stands upstream of their Q/DQ pairs; pairs that nobody reads then go.

    Args:
        graph: edited in place.
        original: the graph before it was quantised, which has the weights that `graph` holds in eight bits alone.
        names: of the nodes.

    Raises:
        ModelError: a weight in eight bits, of a node that the original does not have.
    """
    known = {tensor.name: node for node in original.nodes for tensor in node.outputs}  # nodes without names get some
    for node in [node for node in graph.nodes if name_of(node) in names and node.op not in _PAIR]:
        for index, tensor in enumerate(node.inputs):
            pair = _dequantizer(tensor)
            if pair is None:
                continue
            quantizer = pair.inputs[0].inputs[0] if pair.inputs[0].inputs else None
            if quantizer is not None and quantizer.op == "QuantizeLinear":
                node.inputs[index] = quantizer.inputs[0]
                continue
            before = known.get(node.outputs[0].name)
            weight = None if before is None or index >= len(before.inputs) else upstream_constant(before.inputs[index])
            if weight is None:
                raise ModelError(f"'{name_of(node)}' has a weight in eight bits, and the float32 model no such node")
            node.inputs[index] = gs.Constant(f"{name_of(node)}.float32_{index}", stored_values(weight))
    graph.cleanup()
