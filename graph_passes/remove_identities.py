"""Removes the nodes that do nothing at inference: noise markers and Identity nodes.

Both stand between a producer and its readers and break the fusions of a runtime (Conv, marker, BatchNorm is not
Conv, BatchNorm). The readers take the tensor in front instead. Where the node writes a graph output, that output keeps
its name and the producer in front writes it; where that is impossible (a graph input or a constant stands in front, or
what stands in front is a graph output too) the node becomes, or stays, an Identity.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_graphsurgeon as gs

from .graph_pass import Change, Kept, PassResult
from .marker import is_dropout, marker_label, require_switched_off
from .tensors import captured_tensors, is_graph_output, redirect_readers


class RemoveMarkers:
    """Removes every Dropout in inference form, whatever noise it marks."""

    name = "remove noise markers"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place.

        Raises:
            ModelError: a Dropout that is switched on: the file drops at inference too.
        """
        for node in graph.nodes:
            require_switched_off(node)
        return _remove(graph, self.name, is_dropout)


class RemoveIdentities:
    """Removes every Identity node."""

    name = "remove identities"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place."""
        return _remove(graph, self.name, lambda node: node.op == "Identity" and not node.domain)


def _remove(graph: gs.Graph, name: str, matches: Callable[[gs.Node], bool]) -> PassResult:
    """Takes out every node that matches and can be taken out."""
    captured = {id(tensor) for node in graph.nodes for tensor in captured_tensors(node)}
    changed: list[Change] = []
    kept: list[Kept] = []
    remaining: list[gs.Node] = []
    for node in graph.nodes:
        if not matches(node):
            remaining.append(node)
            continue
        label, reason = marker_label(node), _obstacle(graph, node, captured)
        if reason is None:
            _take_out(graph, node)
            changed.append(Change(label, "removed"))
            continue
        remaining.append(node)
        if node.op != "Identity" and len(node.outputs) == 1:
            node.op, node.attrs = "Identity", {}
            data = node.inputs[0]
            node.inputs.clear()
            node.inputs.append(data)
            changed.append(Change(label, f"made an Identity, since {reason}"))
        else:
            kept.append(Kept(label, reason))
    if len(remaining) != len(graph.nodes):
        graph.nodes.clear()
        graph.nodes.extend(remaining)
    return PassResult(name, tuple(changed), tuple(kept))


def _obstacle(graph: gs.Graph, node: gs.Node, captured: set[int]) -> str | None:
    """Why a node can't be taken out, or None."""
    if any(output.outputs or is_graph_output(graph, output) for output in node.outputs[1:]):
        return "its mask is used"
    data, output = node.inputs[0], node.outputs[0]
    if id(output) in captured:
        return "the body of a control-flow node reads it"
    if not is_graph_output(graph, output):
        return None
    if not data.inputs:
        return "a graph output must be written by a node"
    if is_graph_output(graph, data):
        return "it joins two graph outputs"
    return "the body of a control-flow node reads what it copies" if id(data) in captured else None


def _take_out(graph: gs.Graph, node: gs.Node) -> None:
    """Connects the readers of a node's output with its input, or its producer with the graph output."""
    data, output = node.inputs[0], node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    if is_graph_output(graph, output):
        old, new = data, output
        producer = data.inputs[0]
        producer.outputs[next(i for i, tensor in enumerate(producer.outputs) if tensor is data)] = output
    else:
        old, new = output, data
    redirect_readers(old, new)
