"""The order in which the parts of a graph must run so that each target is measured behind corrected predecessors.

    stage of a tensor = the number of corrected targets, and of markers whose noise is on, on the longest way to it

A stage runs its nodes over the whole calibration set before the next one begins. Each node stands in one stage only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.ir.graph import Tensor, consumed_tensors
from vsfix.graph_passes.noise.marker import marker_label, read_marker
from vsfix.graph_passes.noise.noise import Noise


@dataclass(frozen=True, eq=False)
class NoisyMarker:
    """A marker whose noise is on, and its number in the graph."""

    number: int
    node: gs.Node
    noise: Noise


# What a runtime needs to load a graph grows faster than the graph, and each part has a price of its own.
MOST_NODES = 1000
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Target(Generic[Item]):
    """Something that is to be measured.

    Attributes:
        item: what it is.
        tensors: what must be known for it.
        cuts: the nodes that may run only when the target has been measured; empty where nothing waits for it.
    """

    item: Item
    tensors: tuple[Tensor, ...]
    cuts: tuple[gs.Node, ...] = ()


@dataclass
class Stage(Generic[Item]):
    """What happens in one stage.

    Attributes:
        markers: put noise on what earlier stages cached, before the nodes run.
        nodes: what the runtime runs.
        reads: the tensors that the nodes take from earlier stages, from the markers, or from the graph's inputs.
        hands_on: the tensors that later stages read, by the stage that has them first.
        measured: the targets whose tensors are known after this stage.
    """

    markers: list[NoisyMarker] = field(default_factory=list)
    nodes: list[gs.Node] = field(default_factory=list)
    reads: dict[str, Tensor] = field(default_factory=dict)
    hands_on: dict[str, Tensor] = field(default_factory=dict)
    measured: list[Target[Item]] = field(default_factory=list)

    @property
    def wanted(self) -> set[str]:
        """The names of the tensors that must be at hand when the stage begins, or are made by its own markers."""
        return set(self.reads) | {marker.node.inputs[0].name for marker in self.markers}

    @property
    def measured_of_others(self) -> set[str]:
        """The names of the tensors that it measures and earlier stages compute."""
        own = {tensor.name for node in self.nodes for tensor in node.outputs}
        return {tensor.name for target in self.measured for tensor in target.tensors} - own

    @property
    def made_by_markers(self) -> set[str]:
        """The names of the tensors that carry the noise of this stage."""
        return {marker.node.outputs[0].name for marker in self.markers}


def noisy_markers(graph: gs.Graph) -> list[NoisyMarker]:
    """Every marker of the graph, numbered in its order.

    Raises:
        ModelError: one stands on a weight.
    """
    found = [(node, read_marker(node)) for node in graph.nodes]
    marking = [(node, noise) for node, noise in found if noise is not None]
    for node, _ in marking:
        if isinstance(node.inputs[0], gs.Constant):
            raise ModelError(
                f"Dropout '{marker_label(node)}' stands on a weight, and that noise can't be repeated here: "
                "re-estimate with --method exact --layers all"
            )
    return [NoisyMarker(number, node, noise) for number, (node, noise) in enumerate(marking)]


def plan_stages(graph: gs.Graph, targets: Sequence[Target[Item]], markers: Sequence[NoisyMarker]) -> list[Stage[Item]]:
    """Sorts the nodes that lead to a target into stages.

    Args:
        graph: nodes in topological order.
        targets: what is to be measured; no tensor of a target is downstream of its cuts.
        markers: those whose noise is on.
    """
    cuts = {id(cut): target for target in targets for cut in target.cuts}
    noisy = {id(marker.node): marker for marker in markers}
    stage_of: dict[int, int] = {}
    stages: list[Stage[Item]] = [Stage()]
    leading = _nodes_leading_to(graph, [tensor for target in targets for tensor in target.tensors])
    for node in _after_what_they_await(leading, cuts):
        awaited = cuts[id(node)].tensors if id(node) in cuts else ()
        number = max((stage_of.get(id(tensor), 0) for tensor in (*consumed_tensors(node), *awaited)), default=0)
        number += id(node) in cuts or id(node) in noisy
        while len(stages) <= number:
            stages.append(Stage())
        if id(node) in noisy:
            stages[number].markers.append(noisy[id(node)])
        else:
            stages[number].nodes.append(node)
        stage_of.update((id(tensor), number) for tensor in node.outputs)
    stages = _cut(stages, stage_of)
    for target in targets:
        stages[max(stage_of.get(id(tensor), 0) for tensor in target.tensors)].measured.append(target)
    _connect(stages, stage_of, {id(tensor) for tensor in graph.inputs})
    return stages


def _cut(stages: Sequence[Stage[Item]], stage_of: dict[int, int]) -> list[Stage[Item]]:
    """The same in stages of at most `MOST_NODES`; which tensor is of which is brought up to date."""
    found: list[Stage[Item]] = []
    for stage in stages:
        stage_of.update((id(marker.node.outputs[0]), len(found)) for marker in stage.markers)
        for first in range(0, max(len(stage.nodes), 1), MOST_NODES):
            nodes = stage.nodes[first : first + MOST_NODES]
            stage_of.update((id(tensor), len(found)) for node in nodes for tensor in node.outputs)
            found.append(Stage([] if first else stage.markers, nodes))
    return found


def _connect(stages: Sequence[Stage[Item]], stage_of: Mapping[int, int], graph_inputs: Collection[int]) -> None:
    """Finds what each stage reads from those before it, and so what each hands on."""
    for number, stage in enumerate(stages):
        made_here = {id(marker.node.outputs[0]) for marker in stage.markers}
        for tensor in (tensor for node in stage.nodes for tensor in consumed_tensors(node)):
            source = stage_of.get(id(tensor), number)
            if source < number:
                stages[source].hands_on[tensor.name] = tensor
            if source < number or id(tensor) in graph_inputs or id(tensor) in made_here:
                stage.reads[tensor.name] = tensor
        for tensor in (tensor for target in stage.measured for tensor in target.tensors):
            source = stage_of.get(id(tensor), number)
            if source < number:
                stages[source].hands_on[tensor.name] = stage.reads[tensor.name] = tensor
        for marker in stage.markers:
            data = marker.node.inputs[0]
            if id(data) in stage_of:
                stages[stage_of[id(data)]].hands_on[data.name] = data


def _nodes_leading_to(graph: gs.Graph, targets: Iterable[Tensor]) -> list[gs.Node]:
    """The nodes, in order, from which one of `targets` is computed."""
    wanted = {id(tensor) for tensor in targets}
    leading: list[gs.Node] = []
    for node in reversed(graph.nodes):
        if any(id(tensor) in wanted for tensor in node.outputs):
            leading.append(node)
            wanted.update(id(tensor) for tensor in consumed_tensors(node))
    leading.reverse()
    return leading


def _after_what_they_await(nodes: Sequence[gs.Node], cuts: Mapping[int, Target[Item]]) -> list[gs.Node]:
    """The nodes in an order in which each cut stands behind the producers of what its target measures.

    Raises:
        ModelError: targets that wait for each other.
    """
    place = {id(tensor): number for number, node in enumerate(nodes) for tensor in node.outputs}
    if all(
        place.get(id(tensor), -1) < number
        for number, node in enumerate(nodes)
        if id(node) in cuts
        for tensor in cuts[id(node)].tensors
    ):
        return list(nodes)
    done: set[int] = set()
    waiting: set[int] = set()
    ordered: list[gs.Node] = []
    for start in nodes:
        pending = [start]
        while pending:
            node = pending[-1]
            awaited = cuts[id(node)].tensors if id(node) in cuts else ()
            needed = [nodes[place[id(tensor)]] for tensor in (*consumed_tensors(node), *awaited) if id(tensor) in place]
            missing = [other for other in needed if id(other) not in done]
            if missing:
                waiting.add(id(node))
                if any(id(other) in waiting for other in missing):
                    raise ModelError(
                        f"'{node.name or node.outputs[0].name}' waits for itself: a BatchNorm that is used several "
                        "times has a use downstream of another, so that no order of measuring them is right; take "
                        "--method analytic"
                    )
                pending += missing
                continue
            pending.pop()
            if id(node) not in done:
                done.add(id(node))
                ordered.append(node)
    return ordered
