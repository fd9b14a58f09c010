"""An If whose condition is a constant becomes the branch that it always takes.

Exports of scripted modules hold such nodes. The nodes of a branch are out of reach for every other pass; moved into
the graph around it, they are served like all others. A condition is constant where the graph computes it from
constants, or from sides that are known: an inlined branch may show the sides on which the next condition rests.

    If(true) { then: a = f(x), else: ... } -> y        a = f(x);  Identity(a) -> y
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.fold_constants import ResolveShapes, evaluate_constant
from vsfix.graph_passes.ir.graph import Tensor, is_standard, subgraphs_of
from vsfix.graph_passes.ir.graph_pass import Change, PassResult, Skipped
from vsfix.graph_passes.noise.marker import marker_label


class InlineConstantIf:
    """Moves the nodes of the taken branch into the graph around each If with a constant condition, nested ones too."""

    name = "inline constant If"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place; names that are taken already get a number."""
        inliner = _Inliner(graph)
        while inliner.is_needed:
            inliner.flatten(graph)
            inliner.changed += ResolveShapes()(graph).changed
        skipped = [Skipped(marker_label(node), "its condition is computed at run time") for node in inliner.remaining()]
        return PassResult(self.name, tuple(inliner.changed), tuple(skipped))


class _Inliner:
    """One run of the pass."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self.changed: list[Change] = []

    @property
    def is_needed(self) -> bool:
        """Whether there is an If to inline."""
        return any(self._taken_branch(node) is not None for node in _all_nodes(self._graph.nodes))

    def remaining(self) -> Iterator[gs.Node]:
        """Every If that is still there."""
        return (node for node in _all_nodes(self._graph.nodes) if node.op == "If")

    def flatten(self, owner: gs.Graph) -> None:
        """Inlines in a graph and in the subgraphs in it, until there is nothing left to inline."""
        waiting = list(reversed(owner.nodes))
        flat: list[gs.Node] = []
        while waiting:
            node = waiting.pop()
            branch = self._taken_branch(node)
            if branch is None:
                flat.append(node)
                continue
            label, which = marker_label(node), "then" if branch is node.attrs["then_branch"] else "else"
            self.changed.append(Change(label, f"replaced by its {which}-branch, since its condition is constant"))
            waiting += reversed(self._take_out(node, branch))
        owner.nodes.clear()
        owner.nodes.extend(flat)
        for node in flat:
            for subgraph in subgraphs_of(node):
                self.flatten(subgraph)

    def _taken_branch(self, node: gs.Node) -> gs.Graph | None:
        """The branch that an If always takes, or None."""
        if node.op != "If" or not is_standard(node) or not node.inputs:
            return None
        condition = evaluate_constant(self._graph, node.inputs[0])
        return None if isinstance(condition, str) else node.attrs["then_branch" if condition.any() else "else_branch"]

    def _take_out(self, node: gs.Node, branch: gs.Graph) -> list[gs.Node]:
        """The nodes that do what an If with a constant condition does; the If itself is cut off."""
        self._make_names_unique(node, branch)
        nodes = list(branch.nodes)
        label = marker_label(node)
        for inner, outer in zip(branch.outputs, list(node.outputs), strict=True):
            if not outer.is_empty():
                outer.inputs.clear()
                nodes.append(gs.Node("Identity", name=f"{label}/{outer.name}", inputs=[inner], outputs=[outer]))
        for other in subgraphs_of(node):
            for left in () if other is branch else _all_nodes(other.nodes):
                left.inputs.clear()
                left.outputs.clear()
        node.inputs.clear()
        node.outputs.clear()
        return nodes

    def _make_names_unique(self, node: gs.Node, branch: gs.Graph) -> None:
        """Renames what belongs to a branch and has a name that something outside of the If has too."""
        outside = list(_all_nodes(self._graph.nodes, but=node))
        tensors = [tensor for other in outside for tensor in (*other.inputs, *other.outputs)]
        tensors += [tensor for owner in _graphs(self._graph, outside) for tensor in (*owner.inputs, *owner.outputs)]
        tensors += [*node.inputs, *node.outputs]
        outer, taken = {id(tensor) for tensor in tensors}, {str(tensor.name) for tensor in tensors}
        for tensor in _own_tensors(branch, outer):
            tensor.name = _unused(str(tensor.name), taken)
        names = {str(other.name) for other in outside}
        for inner in _all_nodes(branch.nodes):
            inner.name = _unused(str(inner.name), names) if inner.name else inner.name


def _all_nodes(nodes: Sequence[gs.Node], *, but: gs.Node | None = None) -> Iterator[gs.Node]:
    """Nodes and those of their subgraphs, but for one node and its subgraphs."""
    for node in nodes:
        if node is not but:
            yield node
            for subgraph in subgraphs_of(node):
                yield from _all_nodes(subgraph.nodes, but=but)


def _graphs(graph: gs.Graph, nodes: Sequence[gs.Node]) -> Iterator[gs.Graph]:
    """A graph and the subgraphs of the given nodes."""
    yield graph
    for node in nodes:
        yield from subgraphs_of(node)


def _own_tensors(branch: gs.Graph, outer: set[int]) -> Iterator[Tensor]:
    """Each tensor of a branch, and of the subgraphs in it, that nothing outside reads or writes."""
    seen = set(outer)
    nodes = list(_all_nodes(branch.nodes))
    tensors = [tensor for node in nodes for tensor in (*node.inputs, *node.outputs)]
    for owner in _graphs(branch, nodes):
        tensors += [*owner.inputs, *owner.outputs]
    for tensor in tensors:
        if id(tensor) not in seen and not tensor.is_empty():
            seen.add(id(tensor))
            yield tensor


def _unused(name: str, taken: set[str]) -> str:
    """The name, followed by a number where it is taken; it is taken afterwards."""
    unused, number = name, 2
    while unused in taken:
        unused, number = f"{name}_{number}", number + 1
    taken.add(unused)
    return unused
