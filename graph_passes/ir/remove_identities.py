"""Removes nodes that do nothing at inference, in the subgraphs of If, Loop and Scan too: Identities, noise markers.

They stand between a producer and its readers and break the fusions of a runtime (Conv, marker, BatchNorm is not
Conv, BatchNorm). The readers take the tensor upstream instead. Where the node writes an output of its graph,
that output keeps its name and the producer writes it; where that is impossible (nothing in the same graph produces the
input, or that is an output too) the node becomes, or stays, an Identity. A Dropout whose mask is read or is an output
stays a Dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_graphsurgeon as gs

from .graph import graphs_of, is_standard, name_of, redirect_readers
from .graph_pass import Change, PassResult, Skipped


class RemoveIdentities:
    """Removes every Identity node."""

    name = "remove identities"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place."""
        return bypass_nodes(graph, self.name, lambda node: node.op == "Identity" and is_standard(node))


def bypass_nodes(
    graph: gs.Graph, name: str, matches: Callable[[gs.Node], bool], label: Callable[[gs.Node], str] = name_of
) -> PassResult:
    """Takes out every node that matches and can be taken out; its readers take its first input instead.

    Args:
        graph: edited in place, and its subgraphs.
        name: of the pass.
        matches: says of a node whether its first output equals its first input.
        label: how a report calls a node.
    """
    graphs = list(graphs_of(graph))
    returned = {id(tensor) for owner in graphs for tensor in owner.outputs}
    changed: list[Change] = []
    skipped: list[Skipped] = []
    for owner in graphs:
        matching = {id(node): label(node) for node in owner.nodes if matches(node)}
        if matching:
            _remove_in(owner, matching, returned, changed, skipped)
    return PassResult(name, tuple(changed), tuple(skipped))


def _remove_in(
    owner: gs.Graph,
    matching: Mapping[int, str],
    returned: set[int],
    changed: list[Change],
    skipped: list[Skipped],
) -> None:
    """Takes out what it can of one graph, the labels of the nodes by their ids, and adds to both lists."""
    written = {id(tensor) for node in owner.nodes for tensor in node.outputs}
    own = {id(tensor) for tensor in owner.outputs}
    remaining: list[gs.Node] = []
    for node in owner.nodes:
        if id(node) not in matching:
            remaining.append(node)
            continue
        label, reason = matching[id(node)], _obstacle(node, written, own, returned)
        if reason is None:
            _take_out(node, own)
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
            skipped.append(Skipped(label, reason))
    if len(remaining) != len(owner.nodes):
        owner.nodes.clear()
        owner.nodes.extend(remaining)


def _obstacle(node: gs.Node, written: set[int], own: set[int], returned: set[int]) -> str | None:
    """Why a node can't be taken out, or None.

    Args:
        node: of one graph.
        written: ids of what the nodes of that graph write.
        own: ids of the outputs of that graph.
        returned: ids of the outputs of all graphs.
    """
    if any(output.outputs or id(output) in returned for output in node.outputs[1:]):
        return "its mask is used"
    data, output = node.inputs[0], node.outputs[0]
    if id(output) not in returned:
        return None
    if id(output) not in own:
        return "a subgraph of a control-flow node returns it"
    if id(data) not in written:
        return "a graph output must be written by a node"
    return "it joins two graph outputs" if id(data) in returned else None


def _take_out(node: gs.Node, own: set[int]) -> None:
    """Connects the readers of a node's output with its input, or its producer with the output of the graph."""
    data, output = node.inputs[0], node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    if id(output) in own:
        old, new = data, output
        producer = data.inputs[0]
        producer.outputs[next(i for i, tensor in enumerate(producer.outputs) if tensor is data)] = output
    else:
        old, new = output, data
    redirect_readers(old, new)
