"""Nodes and tensors of a graph: their names, what they read, their subgraphs, the constant upstream of a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_graphsurgeon as gs

Tensor = gs.Variable | gs.Constant


def is_standard(node: gs.Node) -> bool:
    """Whether the ONNX standard itself defines the operator."""
    return node.domain in (None, "", "ai.onnx")


def is_batch_norm(node: gs.Node) -> bool:
    """Whether `node` is the standard's BatchNormalization."""
    return node.op == "BatchNormalization" and is_standard(node)


def name_of(node: gs.Node) -> str:
    """The name of a node, or, where it has none, that of its first output."""
    return str(node.name or (node.outputs[0].name if node.outputs else ""))


def label_of(node: gs.Node) -> str:
    """The operator and the name of a node, for messages."""
    return f"{node.op} '{name_of(node)}'"


def subgraphs_of(node: gs.Node) -> tuple[gs.Graph, ...]:
    """The subgraphs of If, Loop and Scan."""
    return tuple(value for value in node.attrs.values() if isinstance(value, gs.Graph))


def graphs_of(graph: gs.Graph) -> Iterator[gs.Graph]:
    """A graph and the subgraphs in it, outermost first."""
    yield graph
    for node in graph.nodes:
        for subgraph in subgraphs_of(node):
            yield from graphs_of(subgraph)


def nodes_of(graph: gs.Graph) -> Iterator[gs.Node]:
    """The nodes of a graph, then those of the subgraphs in it, graph by graph."""
    for inner in graphs_of(graph):
        yield from inner.nodes


def upstream_constant(tensor: Tensor) -> gs.Constant | None:
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
    """Every tensor that a node reads: its inputs, and what the subgraphs of If, Loop and Scan capture."""
    yield from node.inputs
    yield from captured_tensors(node)


def captured_tensors(node: gs.Node) -> Iterator[Tensor]:
    """The tensors of the outer graph that the subgraphs of If, Loop and Scan read."""
    for subgraph in subgraphs_of(node):
        own = {id(tensor) for inner in subgraph.nodes for tensor in inner.outputs} | {id(t) for t in subgraph.inputs}
        for inner in subgraph.nodes:
            yield from (tensor for tensor in consumed_tensors(inner) if id(tensor) not in own)
        yield from (tensor for tensor in subgraph.outputs if id(tensor) not in own)


def redirect_readers(old: Tensor, new: Tensor, readers: Iterable[gs.Node] | None = None) -> None:
    """Makes nodes read another tensor wherever they read `old`.

    Args:
        old: read from now on by no node, or by the other ones.
        new: read instead.
        readers: which nodes; None for all.
    """
    for reader in list(old.outputs) if readers is None else readers:
        for index, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[index] = new


def is_graph_output(graph: gs.Graph, tensor: Tensor) -> bool:
    """Whether `tensor` is an output of the graph."""
    return any(tensor is output for output in graph.outputs)
