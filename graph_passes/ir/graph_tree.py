"""A graph together with the bodies of its control-flow nodes, at any depth.

What a body returns is read, though no node reads it, and a name is taken wherever in the tree it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from .node_order import NodeOrder
from .nodes import bodies_of
from .tensors import Tensor


@dataclass(frozen=True, eq=False)
class Branch:
    """One graph of the tree: the graph itself and the node whose body it is, None for the main graph."""

    graph: gs.Graph
    owner: gs.Node | None


class GraphTree:
    """A graph and all its bodies.

    Args:
        root: the main graph. Nodes come and go through this object alone; bodies must stay.
    """

    def __init__(self, root: gs.Graph) -> None:
        self.root = root
        self.branches = tuple(_branches(root, None))
        self._returned = {id(tensor) for branch in self.branches for tensor in branch.graph.outputs}
        self._orders = {id(branch.graph): NodeOrder(branch.graph) for branch in self.branches}
        self._names: set[str] | None = None

    def nodes(self) -> Iterator[gs.Node]:
        """Every node of the tree."""
        for branch in self.branches:
            yield from branch.graph.nodes

    def is_returned(self, tensor: Tensor) -> bool:
        """Whether `tensor` is an output of the graph or of one of its bodies."""
        return id(tensor) in self._returned

    def obstacle(self, tensor: Tensor, what: str) -> str | None:
        """Why a tensor can't be given other values, for one reader and unseen from outside; or None.

        Args:
            tensor: written by a node.
            what: how the message calls it.
        """
        if self.is_returned(tensor):
            return f"{what} is an output of the graph"
        if len(tensor.outputs) != 1:
            return f"{what} is read {len(tensor.outputs)} times"
        return None

    def unused_name(self, name: str) -> str:
        """The name, with a number behind it where it is taken; it is taken afterwards."""
        if self._names is None:
            tensors = (tensor for node in self.nodes() for tensor in (*node.inputs, *node.outputs))
            self._names = {str(tensor.name) for tensor in tensors}
            for branch in self.branches:
                self._names |= {str(tensor.name) for tensor in (*branch.graph.inputs, *branch.graph.outputs)}
        unused, number = name, 2
        while unused in self._names:
            unused, number = f"{name}_{number}", number + 1
        self._names.add(unused)
        return unused

    def owns(self, node: gs.Node, constant: gs.Constant) -> bool:
        """Whether `node` alone reads `constant`, directly and once, so that it may be written in place."""
        return len(constant.outputs) == 1 and constant.outputs[0] is node and not self.is_returned(constant)

    def stands_in(self, node: gs.Node, graph: gs.Graph) -> bool:
        """Whether a node is one of this very graph of the tree, not of one around it or of a body."""
        return node in self._orders[id(graph)]

    def insert_after(self, graph: gs.Graph, node: gs.Node, new: gs.Node) -> None:
        """Puts a node behind another one of its graph."""
        self._orders[id(graph)].insert_after(node, new)

    def take_out(self, graph: gs.Graph, node: gs.Node) -> None:
        """Removes a node from its graph and from its tensors."""
        node.inputs.clear()
        node.outputs.clear()
        self._orders[id(graph)].remove(node)


def _branches(graph: gs.Graph, owner: gs.Node | None) -> Iterator[Branch]:
    """The graph first, then the bodies in it."""
    yield Branch(graph, owner)
    for node in graph.nodes:
        for body in bodies_of(node):
            yield from _branches(body, node)
