"""The tensors of a graph: what a node reads, and what constant stands behind a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_graphsurgeon as gs

from .nodes import bodies_of

Tensor = gs.Variable | gs.Constant


def constant_behind(tensor: Tensor) -> gs.Constant | None:
    """The constant that `tensor` holds, seen through Constant and Identity nodes, or None."""
    while isinstance(tensor, gs.Variable) and len(tensor.inputs) == 1:
        producer = tensor.inputs[0]
        if producer.op == "Constant":
            value = producer.attrs.get("value")
            return value if isinstance(value, gs.Constant) else None
        if producer.op != "Identity":
            return None
        tensor = producer.inputs[0]
    return tensor if isinstance(tensor, gs.Constant) else None


def consumed_tensors(node: gs.Node) -> Iterator[Tensor]:
    """Every tensor that a node reads: its inputs, and what the bodies of If, Loop and Scan take from outside."""
    yield from node.inputs
    yield from captured_tensors(node)


def captured_tensors(node: gs.Node) -> Iterator[Tensor]:
    """The tensors of the outer graph that the bodies of If, Loop and Scan read."""
    for body in bodies_of(node):
        own = {id(tensor) for inner in body.nodes for tensor in inner.outputs} | {id(t) for t in body.inputs}
        for inner in body.nodes:
            yield from (tensor for tensor in consumed_tensors(inner) if id(tensor) not in own)
        yield from (tensor for tensor in body.outputs if id(tensor) not in own)


def redirect_readers(old: Tensor, new: Tensor, readers: Iterable[gs.Node] | None = None) -> None:
    """Makes nodes read another tensor wherever they read `old`.

    Args:
        old: read from now on by nobody, or by the other nodes.
        new: what is read instead.
        readers: which nodes; None for all.
    """
    for reader in list(old.outputs) if readers is None else readers:
        for index, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[index] = new


def is_graph_output(graph: gs.Graph, tensor: Tensor) -> bool:
    """Whether `tensor` is an output of the graph."""
    return any(tensor is output for output in graph.outputs)
