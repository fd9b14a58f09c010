"""From the form in which a network trains to the form in which it is deployed, where the file holds the first.

A file that was exported in training mode drops at inference, and its BatchNorms normalise with the statistics of each
batch instead of the stored ones. Both have an inference form that holds everything the repair needs:

    Dropout               training_mode = false (opset 12 and newer), is_test = 1 (opset 6 and older); the ratio stays,
                          so that the node is a noise marker. Between the two the operator only knows inference.
    BatchNormalization    training_mode = 0 (opset 14 and newer), one output (7 to 13), is_test = 1 (6 and older); the
                          stored mean and variance, which a training run only updates, are what it then uses.

What a training run writes besides (the mask, the updated and the saved statistics) means nothing at inference: where it
is an output of the graph, that output goes, and the change says so. Where a node computes with it the meaning of that
computation is unknown (a mask that is read may be scaled by hand), so the node stays in training form and the reason
stands under `skipped`; whatever needs the inference form then refuses the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import Tensor, is_batch_norm, is_graph_output, upstream_constant
from vsfix.graph_passes.ir.graph_pass import Change, PassResult, Skipped
from vsfix.graph_passes.noise.marker import is_dropout, is_switched_off, marker_label


@dataclass(eq=False)
class _Surroundings:
    """The surroundings of a node that the decisions depend on.

    Attributes:
        graph: the main graph.
        read: ids of the tensors that a node reads, or that a subgraph returns.
        names: of all tensors.
        unread: ids of the nodes that nothing reads any more.
    """

    graph: gs.Graph
    read: set[int] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    unread: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, graph: gs.Graph) -> _Surroundings:
        """Looks at the main graph and every subgraph in it."""
        found = cls(graph)
        for owner in _graphs(graph):
            found.read.update(id(tensor) for node in owner.nodes for tensor in node.inputs)
            found.names.update(str(name) for name in owner.tensors())
        found.read.update(id(tensor) for subgraph in graph.subgraphs(recursive=True) for tensor in subgraph.outputs)
        return found


class LeaveTrainingMode:
    """Turns every Dropout and BatchNormalization in training form into its inference form, in subgraphs too."""

    name = "leave training mode"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place; inputs that only switched the training mode, and outputs that only it has, go."""
        surroundings = _Surroundings.of(graph)
        changed: list[Change] = []
        skipped: list[Skipped] = []
        for node in [node for owner in _graphs(graph) for node in owner.nodes]:
            if not (_drops(node, graph.opset) or _normalises_by_batch(node, graph.opset)):
                continue
            label = marker_label(node)
            reason = _obstacle(node, surroundings)
            if reason is not None:
                skipped.append(Skipped(label, reason))
                continue
            changed.append(Change(label, _switch_off(node, surroundings)))
        if surroundings.unread:
            for owner in _graphs(graph):
                owner.nodes[:] = [node for node in owner.nodes if id(node) not in surroundings.unread]
        return PassResult(self.name, tuple(changed), tuple(skipped))


def _graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """The main graph and every subgraph in it."""
    yield graph
    yield from graph.subgraphs(recursive=True)


def _drops(node: gs.Node, opset: int) -> bool:
    """Whether a node is a Dropout that drops when the file runs."""
    if not is_dropout(node):
        return False
    return not node.attrs.get("is_test", 0) if opset < 7 else not is_switched_off(node)


def _normalises_by_batch(node: gs.Node, opset: int) -> bool:
    """Whether a node is a BatchNormalization that uses the statistics of the batch when the file runs."""
    if not is_batch_norm(node):
        return False
    if opset < 7 and not node.attrs.get("is_test", 0):
        return True
    return bool(node.attrs.get("training_mode", 0)) or any(not tensor.is_empty() for tensor in node.outputs[1:])


def _obstacle(node: gs.Node, surroundings: _Surroundings) -> str | None:
    """Why a node can't be switched off, or None."""
    if any(id(tensor) in surroundings.read for tensor in node.outputs[1:]):
        what = "mask" if is_dropout(node) else "updated statistics"
        return f"it stays in training form: another node computes with its {what}"
    if is_batch_norm(node) and not all(upstream_constant(tensor) for tensor in node.inputs[3:5]):
        return (
            "it stays in training form: the file stores no mean and variance for it (track_running_stats=False?), so "
            "that it can only normalise with the statistics of the batch"
        )
    remaining = [tensor for tensor in surroundings.graph.outputs if not _is_among(tensor, node.outputs[1:])]
    return None if remaining else "it stays in training form: the graph has no output but what training updates"


def _switch_off(node: gs.Node, surroundings: _Surroundings) -> str:
    """Puts a node into inference form; returns what was done."""
    if is_dropout(node):
        done = ["switched off; its ratio stays as a noise marker"]
        if "is_test" in node.attrs or surroundings.graph.opset < 7:
            node.attrs["is_test"] = 1
        else:
            done += _clear_training_mode(node, surroundings)
    else:
        done = ["normalises with its stored statistics"]
        if _is_fresh(node):
            done.append("these are 0 and 1 throughout, as if it had never been trained")
        node.attrs.pop("training_mode", None)
        if surroundings.graph.opset < 7:
            node.attrs["is_test"] = 1
    return "; ".join(done + _drop_outputs(node, surroundings.graph))


def _is_fresh(node: gs.Node) -> bool:
    """Whether a BatchNormalization stores the mean 0 and the variance 1 that it began with."""
    stored = [upstream_constant(tensor) for tensor in node.inputs[3:5]]
    return all(np.all(tensor.values == start) for tensor, start in zip(stored, (0, 1), strict=True) if tensor)


def _clear_training_mode(node: gs.Node, surroundings: _Surroundings) -> list[str]:
    """Sets the training_mode of a Dropout to a constant false; says which graph input went with it."""
    old: Tensor = node.inputs[2]
    name = f"{marker_label(node)}.training_mode"
    while name in surroundings.names:
        name += "_"
    surroundings.names.add(name)
    node.inputs[2] = gs.Constant(name, np.array(False))
    graph = surroundings.graph
    if old.outputs or any(is_graph_output(owner, old) for owner in _graphs(graph)):
        return []
    surroundings.unread.update(id(producer) for producer in old.inputs if producer.op == "Constant")
    if not any(tensor is old for tensor in graph.inputs):
        return []
    graph.inputs = [tensor for tensor in graph.inputs if tensor is not old]
    return [f"the input '{old.name}' that switched it is gone"]


def _drop_outputs(node: gs.Node, graph: gs.Graph) -> list[str]:
    """Leaves a node its first output; says which outputs of the graph went."""
    extra = list(node.outputs[1:])
    gone = [str(tensor.name) for tensor in graph.outputs if _is_among(tensor, extra)]
    graph.outputs = [tensor for tensor in graph.outputs if not _is_among(tensor, extra)]
    while len(node.outputs) > 1:
        node.outputs.pop()
    return [f"the graph's output {', '.join(gone)} is gone"] if gone else []


def _is_among(tensor: Tensor, tensors: list[Tensor]) -> bool:
    """Whether `tensor` itself is in the list."""
    return any(tensor is other for other in tensors)
