"""What a node is: of the ONNX standard or not, how it is called; and the bodies that If, Loop and Scan hold."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs


def is_standard(node: gs.Node) -> bool:
    """Whether the ONNX standard itself defines the operator."""
    return node.domain in (None, "", "ai.onnx")


def is_batch_norm(node: gs.Node) -> bool:
    """Whether `node` is the standard's BatchNormalization."""
    return node.op == "BatchNormalization" and is_standard(node)


def name_of(node: gs.Node) -> str:
    """What a node is called: by its name, or, where it has none, as its first output."""
    return str(node.name or (node.outputs[0].name if node.outputs else ""))


def label_of(node: gs.Node) -> str:
    """What a node is called in messages."""
    return f"{node.op} '{name_of(node)}'"


def bodies_of(node: gs.Node) -> tuple[gs.Graph, ...]:
    """The bodies of If, Loop and Scan."""
    return tuple(value for value in node.attrs.values() if isinstance(value, gs.Graph))


def graphs_of(graph: gs.Graph) -> Iterator[gs.Graph]:
    """A graph and the bodies in it, outermost first."""
    yield graph
    for node in graph.nodes:
        for body in bodies_of(node):
            yield from graphs_of(body)


def nodes_of(graph: gs.Graph) -> Iterator[gs.Node]:
    """The nodes of a graph, then those of the bodies in it, graph by graph."""
    for inner in graphs_of(graph):
        yield from inner.nodes
