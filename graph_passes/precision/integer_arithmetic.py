"""Float arithmetic between integers: computations with shapes and indices that pass through floats.

    Shape -> Cast to float -> Mul by 1.5 -> Floor -> Cast to int64 -> Reshape

A narrow type would change the integers that come out: float16 holds every integer to 2048, bfloat16 to 256. The same
goes for a float that an operator wants in float32 whatever the graph computes in, as the scales of Resize.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.element_types import FLOATS, ElementTypes, code_of
from vsfix.graph_passes.ir.graph import Tensor, is_standard, nodes_of, subgraphs_of

# Arithmetic with shapes has none of these.
_OF_NETWORKS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LSTM", "GRU", "RNN"})


def integer_arithmetic(graph: gs.Graph, types: ElementTypes, takes: Callable[[gs.Node, int], bool]) -> frozenset[int]:
    """The ids of the nodes between integers and constants alone and an input that must stay a float.

    Args:
        graph: not changed.
        types: of its tensors.
        takes: whether a node lets its input at an index have another float type.
    """
    found: set[int] = set()
    for node in nodes_of(graph):
        for tensor in _demanding_inputs(node, types, takes):
            cone = _cone(tensor, types)
            if cone is not None:
                found |= cone | ({id(node)} if node.op == "Cast" else set())
    return frozenset(found)


def _demanding_inputs(node: gs.Node, types: ElementTypes, takes: Callable[[gs.Node, int], bool]) -> Iterator[Tensor]:
    """The float inputs whose type must stay: those of a Cast to integers, and those that take no other type."""
    if subgraphs_of(node):
        return
    for index, tensor in enumerate(node.inputs):
        if types.float_of(tensor) is None:
            continue
        ends = node.op == "Cast" and is_standard(node) and code_of(node.attrs["to"]) not in FLOATS
        if ends or (node.op != "Cast" and not takes(node, index)):
            yield tensor


def _cone(tensor: Tensor, types: ElementTypes) -> set[int] | None:
    """The nodes upstream of a float tensor up to integers and constants; None where anything else is upstream."""
    nodes: set[int] = set()
    open_tensors = [tensor]
    while open_tensors:
        current = open_tensors.pop()
        if isinstance(current, gs.Constant) or current.is_empty() or types.float_of(current) is None:
            continue
        if not current.inputs:
            return None  # an input of the graph or of a subgraph
        producer = current.inputs[0]
        if producer.op in _OF_NETWORKS or subgraphs_of(producer) or not is_standard(producer):
            return None
        if id(producer) not in nodes:
            nodes.add(id(producer))
            open_tensors += list(producer.inputs)
    return nodes
