"""Where each node of a graph stands in its list, without a search.

A list finds a node by looking at all in front of it, so that a pass over many nodes takes the square of their number.
Here each node has a key that grows along the list; an inserted one gets a key halfway between its neighbours, and a
node is found by bisection.
"""

from __future__ import annotations

from bisect import bisect_left
from fractions import Fraction

import onnx_graphsurgeon as gs


class NodeOrder:
    """The order of the nodes of one graph.

    Args:
        graph: its list of nodes must be changed by this object alone as long as that is in use.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._nodes: list[gs.Node] = graph.nodes
        # Fractions, not floats: between two of them there is always room.
        self._keys: dict[int, int | Fraction] = {id(node): index for index, node in enumerate(graph.nodes)}

    def __contains__(self, node: gs.Node) -> bool:
        """Whether the node stands in this very graph, not in one around it or in a body."""
        return id(node) in self._keys

    def insert_after(self, node: gs.Node, new: gs.Node) -> None:
        """Puts a node behind another."""
        position = self._position(node) + 1
        key = self._keys[id(node)]
        behind = self._keys[id(self._nodes[position])] if position < len(self._nodes) else key + 2
        self._keys[id(new)] = (key + behind) * Fraction(1, 2)
        self._nodes.insert(position, new)

    def remove(self, node: gs.Node) -> None:
        """Takes a node off the list; its tensors stay as they are."""
        del self._nodes[self._position(node)]
        del self._keys[id(node)]

    def _position(self, node: gs.Node) -> int:
        """The index of a node in the list."""
        return bisect_left(self._nodes, self._keys[id(node)], key=lambda other: self._keys[id(other)])
