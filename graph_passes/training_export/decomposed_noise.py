"""Noise that an export wrote as arithmetic on random numbers becomes the marker of its kind.

A training export writes what ONNX has no operator for as primitives: a mask is a comparison of random numbers, scaled,
and multiplied with the activation. Such a graph draws random numbers at inference too. The pass finds the expression
of each tensor (`random_expression`), recognises the kind of noise (`random_factor`), and writes the marker:

    x -> Mul(x, Div(Cast(Less(RandomUniformLike(x), keep)), keep)) -> y        x -> Dropout(ratio = 1 - keep) -> y

The marker stands at the first tensor of mean x, wherever in the arithmetic that is. Noise that is not recognised with
certainty is skipped, and so is noise in a subgraph of a control-flow node; every operator that still draws random
numbers afterwards is named with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import Tensor, is_standard, subgraphs_of
from vsfix.graph_passes.ir.graph_pass import Change, PassResult, Skipped
from vsfix.graph_passes.ir.shapes import SymbolicShapes
from vsfix.graph_passes.noise.marker import (
    is_dropout,
    is_switched_off,
    marker_label,
    marker_node_name,
    marker_ratio,
    write_marker,
)
from vsfix.graph_passes.noise.noise import Noise

from .random_expression import RANDOM_OPERATORS, ZERO, AffineExpression, RandomExpressions
from .random_factor import recognise
from .random_variable import Draw

_STILL_READ = "something else reads its random numbers"
_UNKNOWN = "the graph draws random numbers at inference, in an expression that vsfix does not know as noise"
_IN_SUBGRAPH = "it draws random numbers in a subgraph of a control-flow node, where nothing is replaced"


class MarkDecomposedNoise:
    """Replaces noise that is written as primitives by its marker."""

    name = "mark decomposed noise"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place."""
        owners = (graph, *graph.subgraphs(recursive=True))
        if not any(_draws(node) or _drops(node) for owner in owners for node in owner.nodes):
            return PassResult(self.name)
        search = _Search(graph)
        nodes = [search.visit(node) for node in graph.nodes]
        dead = search.dead_nodes()
        graph.nodes.clear()
        graph.nodes.extend(node for node in nodes if id(node) not in dead)
        skipped = [
            Skipped(marker_label(node), search.reasons.get(id(node), _UNKNOWN)) for node in graph.nodes if _draws(node)
        ]
        skipped += [
            Skipped(marker_label(node), _IN_SUBGRAPH)
            for subgraph in graph.subgraphs(recursive=True)
            for node in subgraph.nodes
            if _draws(node)
        ]
        return PassResult(self.name, tuple(search.changed), tuple(skipped))


class _Search:
    """Looks at the nodes of a graph in their order.

    Attributes:
        changed: what was replaced.
        reasons: by the id of the operator that draws, why its noise is none; the last one counts.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._shapes = SymbolicShapes(graph)
        self._expressions = RandomExpressions(self._shapes)
        self._taken = {str(name) for name in graph.tensors()} | {str(node.name) for node in graph.nodes}
        self._replaced: list[gs.Node] = []
        self._handed_out = {
            id(tensor) for owner in (graph, *graph.subgraphs(recursive=True)) for tensor in owner.outputs
        }
        self.changed: list[Change] = []
        self.reasons: dict[int, str] = {}

    def visit(self, node: gs.Node) -> gs.Node:
        """The node, or the marker that takes its place."""
        expression = self._expressions.feed(node)
        if expression is None or expression.base is None:
            return node
        reason = ""
        for base, candidate in ((expression.base, expression), *self._scaled_before(expression)):
            noise = recognise(candidate, self._shapes)
            if not self._shapes.may_be_equal(base, node.outputs[0]):
                noise = "it gives what it multiplies another shape"
            if isinstance(noise, Noise):
                self.reasons.update((id(draw.node), _STILL_READ) for draw in expression.draws)
                return self._replace(node, base, expression.draws, noise)
            reason = reason or noise
        self.reasons.update((id(draw.node), reason) for draw in expression.draws)
        return node

    def _scaled_before(self, expression: AffineExpression) -> list[tuple[Tensor, AffineExpression]]:
        """The expression in terms of the input of an upstream scaling by a constant: (x / keep) m is (x) m / keep."""
        base = expression.base
        if expression.offset != ZERO or not isinstance(base, gs.Variable) or len(base.inputs) != 1:
            return []
        node = base.inputs[0]
        variables = [self._expressions.of(tensor).variable for tensor in node.inputs]
        constants = [None if variable is None else variable.value for variable in variables]
        if node.op == "Div" and constants[1]:
            pairs = [(node.inputs[0], 1 / constants[1])]
        else:
            scaled = zip(reversed(node.inputs), constants, strict=True) if node.op == "Mul" else ()
            pairs = [(tensor, value) for tensor, value in scaled if value]
        return [(tensor, AffineExpression(tensor, expression.factor.scaled(value), ZERO)) for tensor, value in pairs]

    def _replace(self, node: gs.Node, base: Tensor, draws: Sequence[Draw], noise: Noise) -> gs.Node:
        """The marker of `noise` between a tensor and what `node` writes."""
        output = node.outputs[0]
        self._expressions.forget(output)
        self._replaced.append(node)
        node.outputs.clear()
        label = self._free_name(str(node.name or output.name))
        drawn = ", ".join(dict.fromkeys(marker_label(draw.node) for draw in draws))
        self.changed.append(Change(label, f"marked as {noise}, which it computed from the random numbers of {drawn}"))
        if self._graph.opset >= 12:
            return write_marker(label, noise, base, output)
        return gs.Node(
            op="Dropout",
            name=marker_node_name(label, noise),
            attrs={"ratio": marker_ratio(noise)},
            inputs=[base],
            outputs=[output],
        )

    def _free_name(self, label: str) -> str:
        """The label, longer where a tensor that the marker names after it exists."""
        while self._taken & {f"{label}.ratio", f"{label}.training_mode"}:
            label += "_"
        self._taken.update((f"{label}.ratio", f"{label}.training_mode"))
        return label

    def dead_nodes(self) -> set[int]:
        """Takes out what only the replaced nodes read; returns the ids of all nodes that are no longer needed."""
        dead: dict[int, gs.Node] = {id(node): node for node in self._replaced}
        waiting = list(self._replaced)
        readers: dict[int, int] = {}
        while waiting:
            for tensor in waiting.pop().inputs:
                readers[id(tensor)] = readers.get(id(tensor), len(tensor.outputs)) - 1
                for producer in tensor.inputs:
                    if id(producer) not in dead and self._is_dead(producer, readers):
                        dead[id(producer)] = producer
                        waiting.append(producer)
        _disconnect(dead)
        return set(dead)

    def _is_dead(self, node: gs.Node, readers: Mapping[int, int]) -> bool:
        """Whether nothing reads what a node writes; False for one with subgraphs."""
        if subgraphs_of(node):
            return False
        unread = [readers.get(id(tensor), len(tensor.outputs)) == 0 for tensor in node.outputs]
        return all(unread) and not any(id(tensor) in self._handed_out for tensor in node.outputs)


def _disconnect(dead: Mapping[int, gs.Node]) -> None:
    """Takes nodes from the readers of what they read; the graph's own method compares whole nodes, for each reader."""
    tensors = {id(tensor): tensor for node in dead.values() for tensor in node.inputs}
    for tensor in tensors.values():
        living = [reader for reader in tensor.outputs if id(reader) not in dead]
        list.clear(tensor.outputs)
        list.extend(tensor.outputs, living)
    for node in dead.values():
        list.clear(node.inputs)


def _drops(node: gs.Node) -> bool:
    """Whether a node is a Dropout in training mode."""
    return is_dropout(node) and not is_switched_off(node)


def _draws(node: gs.Node) -> bool:
    """Whether a node draws random numbers."""
    return node.op in RANDOM_OPERATORS and is_standard(node)
