"""Noise propagation over the tensors of a graph: one sweep for all sources together.

Each tensor has a state: for each distance the sources that reach it at that distance and not at a smaller one, as a set
of bits. A node joins the states of what it reads, each source at its smallest distance, and then moves every source at
least as far as its own kind of step goes:

    direct      nothing happens to an element: reshapes, transposes, casts
    linear      a linear map, or a product of which the source reaches one operand alone
    downstream  everything else, and unknown operators, so that noise is never overlooked

Operators that read only the shape of a tensor stop the noise. The subgraphs of If, Loop and Scan are swept where
their node stands, a loop until nothing changes any more; what leaves a subgraph counts as downstream. The cost is that
of one pass over the nodes, with one machine word for each 64 sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.ir.graph import is_batch_norm, is_standard, subgraphs_of
from vsfix.graph_passes.ir.subgraphs import subgraph_links

from .concat_slices import sliced_operands
from .marker import marker_label, read_marker, require_switched_off
from .noise import Noise

ELEMENTWISE_COPIES = frozenset(
    "Identity Cast Reshape Flatten Squeeze Unsqueeze Transpose Dropout Slice Gather Split".split()
)
LINEAR_MAPS = frozenset(
    "Conv ConvTranspose Gemm MatMul AveragePool GlobalAveragePool ReduceMean ReduceSum Mean Sum Add Sub Neg Pad Expand "
    "Tile Concat DepthToSpace SpaceToDepth".split()
)
LINEAR_IN_ONE_OPERAND = frozenset("Mul Div Conv ConvTranspose Gemm MatMul".split())
SHAPE_READERS = frozenset("Shape Size ConstantOfShape RandomUniformLike RandomNormalLike EyeLike".split())

# The sources that reach a tensor: directly, through a linear map, downstream. Bit i stands for source i.
State = tuple[int, int, int]
NOWHERE: State = (0, 0, 0)


class Distance(IntEnum):
    """The distance of noise to the BatchNorm that it reaches; the smaller, the nearer."""

    DIRECT = 0
    LINEAR = 1
    DOWNSTREAM = 2

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class PassedNode:
    """A node on a path of noise.

    Attributes:
        operator: as `Conv`.
        name: the node's name without a tag; that of its output where it has none.
    """

    operator: str
    name: str

    @classmethod
    def of(cls, node: gs.Node) -> PassedNode:
        """The operator and the name of a node of a graph."""
        return cls(str(node.op), marker_label(node))


class Step(NamedTuple):
    """The effect on the noise of one node, or of one edge of a subgraph.

    Attributes:
        node: the node; None for an edge that is no node.
        distance: how far it moves the noise.
        bilinear: it moves noise that reaches more than one operand downstream.
        inputs: the ids of the tensors that are read.
        outputs: the ids of the tensors that are written.
    """

    node: PassedNode | None
    distance: Distance
    bilinear: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Found:
    """A marker or a BatchNormalization that the sweep came across.

    Attributes:
        node: the node.
        owner: the label of the control-flow node in whose subgraph it stands; empty in the main graph.
        noise: of a marker.
    """

    node: gs.Node
    owner: str
    noise: Noise | None = None


class NoisePropagation:
    """The sweep over a graph.

    Attributes:
        sources: every marker, in the order of the graph; source i is bit i.
        batch_norms: every BatchNormalization in a subgraph.
        states: by the id of a tensor; where nothing arrives there is no entry.
        steps: everything that moved noise, in order; enough to trace a path after the graph has changed.

    Raises:
        ModelError: a marker that can't be read, a Dropout that is switched on, a BatchNorm of a subgraph in training
            form.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self.sources: list[Found] = []
        self.batch_norms: list[Found] = []
        self.states: dict[int, State] = {}
        self.steps: list[Step] = []
        self._numbers: dict[int, int] = {}
        self._sweep(graph.nodes, "")

    def _sweep(self, nodes: Iterable[gs.Node], owner: str) -> None:
        """Takes the noise through nodes in their order."""
        for node in nodes:
            if subgraphs_of(node):
                self._sweep_subgraphs(node, owner)
            elif node.op not in SHAPE_READERS or node.domain:
                self._take(self._narrowed(node) or _step(node))
            if node.op == "Dropout":
                self._add_source(node, owner)
            elif owner and is_batch_norm(node):
                self._add_batch_norm(node, owner)

    def _take(self, step: Step) -> None:
        """Moves what arrives at the inputs of a step to its outputs."""
        arriving = [self.states[key] for key in step.inputs if key in self.states]
        if arriving:
            state = _moved(arriving, step)
            self.states.update((key, state) for key in step.outputs)
            self.steps.append(step)

    def _narrowed(self, node: gs.Node) -> Step | None:
        """The step of a Slice that leaves out some of the noise of what it cuts; None where it does not."""
        if node.op != "Slice" or not is_standard(node) or id(node.inputs[0]) not in self.states:
            return None
        operands = sliced_operands(node)
        if operands is None:
            return None
        reached = _sources(self.states.get(id(tensor), NOWHERE) for tensor in operands.tensors)
        if reached == _sources([self.states[id(node.inputs[0])]]):
            return None  # nothing is gained, and the usual step knows the distances better
        distance = max((_own_distance(passed) for passed in operands.passed), default=Distance.LINEAR)
        products = any(passed.op in LINEAR_IN_ONE_OPERAND for passed in operands.passed)
        distance = Distance.DOWNSTREAM if products else max(distance, Distance.LINEAR)
        return Step(
            PassedNode.of(node), distance, False, tuple(map(id, operands.tensors)), tuple(map(id, node.outputs))
        )

    def _add_source(self, node: gs.Node, owner: str) -> None:
        """Lets the noise of a marker begin at its output."""
        require_switched_off(node)
        noise = read_marker(node)
        if noise is None:
            return
        number = self._numbers.setdefault(id(node), len(self.sources))
        if number == len(self.sources):
            self.sources.append(Found(node, owner, noise))
        key = id(node.outputs[0])
        self.states[key] = joined([self.states.get(key, NOWHERE), (1 << number, 0, 0)])

    def _add_batch_norm(self, node: gs.Node, owner: str) -> None:
        """Remembers a BatchNorm that stands in a subgraph."""
        if node.attrs.get("training_mode", 0) or len([tensor for tensor in node.outputs if not tensor.is_empty()]) > 1:
            raise ModelError(
                f"BatchNorm '{marker_label(node)}' in the subgraph of '{owner}' is in training form; export the model "
                "after model.eval()"
            )
        if not any(node is found.node for found in self.batch_norms):
            self.batch_norms.append(Found(node, owner))

    def _sweep_subgraphs(self, node: gs.Node, owner: str) -> None:
        """Takes the noise into the subgraphs of a control-flow node, round until it settles, and out again."""
        label = f"{owner}/{marker_label(node)}" if owner else marker_label(node)
        links = subgraph_links(node)
        self._enter(links.entering)
        before: list[State] | None = None
        while before != (now := [self.states.get(key, NOWHERE) for key in links.watched]):
            before = now
            for inner in links.subgraphs:
                self._sweep(inner.nodes, label)
            self._enter(links.entering)
        for inputs, output in links.leaving:
            self._take(Step(PassedNode.of(node), Distance.DOWNSTREAM, False, inputs, (output,)))

    def _enter(self, entering: Iterable[tuple[int, int]]) -> None:
        """Lets the noise of tensors arrive at the inputs of subgraphs too."""
        for source, target in entering:
            if source in self.states:
                self._take(Step(None, Distance.DIRECT, False, (source, target), (target,)))

    def trace(self, number: int, target: int) -> tuple[PassedNode, ...]:
        """The nodes on the nearest path from a source to the tensor with the id `target`, the shortest of these."""
        arrived: dict[int, _Arrival] = {id(self.sources[number].node.outputs[0]): _Arrival(Distance.DIRECT, 0)}
        for step in self.steps:
            arrivals = [arrived[key] for key in step.inputs if key in arrived]
            if not arrivals:
                continue
            best = min(arrivals, key=_Arrival.order)
            far = step.bilinear and len(arrivals) > 1
            distance = max(best.distance, Distance.DOWNSTREAM if far else step.distance)
            here = _Arrival(distance, best.steps + (step.node is not None), step.node, best)
            for key in step.outputs:
                if key not in arrived or here.order() < arrived[key].order():
                    arrived[key] = here
        return tuple(reversed(list(arrived[target].nodes())))


@dataclass(frozen=True, eq=False)
class _Arrival:
    """The arrival of the noise of one source at a tensor."""

    distance: Distance
    steps: int
    node: PassedNode | None = None
    before: _Arrival | None = None

    def order(self) -> tuple[int, int]:
        """The nearer the smaller."""
        return self.distance, self.steps

    def nodes(self) -> Iterator[PassedNode]:
        """The nodes on the path, from here back to the source."""
        here: _Arrival | None = self
        while here is not None:
            if here.node is not None:
                yield here.node
            here = here.before


def _step(node: gs.Node) -> Step:
    """The effect on the noise of a node without subgraphs."""
    inputs, outputs = tuple(map(id, node.inputs)), tuple(map(id, node.outputs))
    if not is_standard(node):
        return Step(PassedNode.of(node), Distance.DOWNSTREAM, False, inputs, outputs)
    return Step(PassedNode.of(node), _own_distance(node), node.op in LINEAR_IN_ONE_OPERAND, inputs, outputs)


def _own_distance(node: gs.Node) -> Distance:
    """The distance to which a standard operator moves noise that reaches one of its operands."""
    if node.op in ELEMENTWISE_COPIES:
        return Distance.DIRECT
    linear = node.op in LINEAR_MAPS or node.op in LINEAR_IN_ONE_OPERAND
    return Distance.LINEAR if linear else Distance.DOWNSTREAM


def _sources(states: Iterable[State]) -> int:
    """Every source that any of the states holds, at whatever distance."""
    bits = 0
    for direct, linear, downstream in states:
        bits |= direct | linear | downstream
    return bits


def joined(states: Sequence[State]) -> State:
    """Every source of any of the states, at its smallest distance."""
    direct = linear = downstream = 0
    for state in states:
        direct, linear, downstream = direct | state[0], linear | state[1], downstream | state[2]
    return direct, linear & ~direct, downstream & ~(direct | linear)


def _moved(states: Sequence[State], step: Step) -> State:
    """The state downstream of a step."""
    direct, linear, downstream = states[0] if len(states) == 1 else joined(states)
    if step.distance is Distance.DOWNSTREAM:
        return 0, 0, direct | linear | downstream
    if step.bilinear and len(states) > 1:
        once = twice = 0
        for state in states:
            reached = state[0] | state[1] | state[2]
            once, twice = once | reached, twice | (once & reached)
        return 0, (direct | linear) & ~twice, downstream | twice
    return (0, direct | linear, downstream) if step.distance is Distance.LINEAR else (direct, linear, downstream)
