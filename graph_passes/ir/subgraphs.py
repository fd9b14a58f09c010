"""A graph together with the subgraphs of its control-flow nodes, at any depth.

`GraphTree`: the outputs of a subgraph are read, though no node reads them; a name is taken anywhere in the tree.

`NodeOrder`: a list finds a node by looking at all before it, so that a pass over many nodes takes the square of their
number. Here each node has a key that grows along the list; an inserted one gets a key halfway between its
neighbours, and a node is found by bisection.

`subgraph_links`: how the tensors of a control-flow node and those of its subgraphs belong together.

    If      condition; the branches read the tensors around them       outputs: those of either branch
    Loop    count, condition, carried values                           outputs: carried values, then stacked ones
    Scan    carried values, then tensors that are cut into slices      outputs: carried values, then stacked ones

The carried outputs are the carried inputs of the next round. An unknown operator connects everything.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import onnx_graphsurgeon as gs

from .graph import Tensor, is_standard, subgraphs_of


@dataclass(frozen=True, eq=False)
class Branch:
    """One graph of the tree: the graph itself and the node whose subgraph it is, None for the main graph."""

    graph: gs.Graph
    owner: gs.Node | None


class GraphTree:
    """A graph and all its subgraphs.

    Args:
        root: the main graph. Nodes come and go through this object alone; subgraphs must stay.
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
        """Whether `tensor` is an output of the graph or of one of its subgraphs."""
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
        """The name, followed by a number where it is taken; it is taken afterwards."""
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
        """Whether a node is one of this very graph of the tree, not of one around it or of a subgraph."""
        return node in self._orders[id(graph)]

    def insert_after(self, graph: gs.Graph, node: gs.Node, new: gs.Node) -> None:
        """Puts a node after another one of its graph."""
        self._orders[id(graph)].insert_after(node, new)

    def take_out(self, graph: gs.Graph, node: gs.Node) -> None:
        """Removes a node from its graph and from its tensors."""
        node.inputs.clear()
        node.outputs.clear()
        self._orders[id(graph)].remove(node)


def _branches(graph: gs.Graph, owner: gs.Node | None) -> Iterator[Branch]:
    """The graph first, then the subgraphs in it."""
    yield Branch(graph, owner)
    for node in graph.nodes:
        for subgraph in subgraphs_of(node):
            yield from _branches(subgraph, node)


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
        """Whether the node stands in this very graph, not in one around it or in a subgraph."""
        return id(node) in self._keys

    def insert_after(self, node: gs.Node, new: gs.Node) -> None:
        """Puts a node after another."""
        position = self._position(node) + 1
        key = self._keys[id(node)]
        following = self._keys[id(self._nodes[position])] if position < len(self._nodes) else key + 2
        self._keys[id(new)] = (key + following) * Fraction(1, 2)
        self._nodes.insert(position, new)

    def remove(self, node: gs.Node) -> None:
        """Takes a node off the list; its tensors are unchanged."""
        del self._nodes[self._position(node)]
        del self._keys[id(node)]

    def _position(self, node: gs.Node) -> int:
        """The index of a node in the list."""
        return bisect_left(self._nodes, self._keys[id(node)], key=lambda other: self._keys[id(other)])


@dataclass
class SubgraphLinks:
    """The connections, as ids of tensors.

    Attributes:
        subgraphs: those of the node.
        entering: pairs (tensor, input of a subgraph): what the input holds in the first or in a later round.
        leaving: for each output of the node, what it can depend on.
        watched: the inputs of the subgraphs; when nothing changes there, another round changes nothing.
    """

    subgraphs: tuple[gs.Graph, ...]
    entering: list[tuple[int, int]] = field(default_factory=list)
    leaving: list[tuple[tuple[int, ...], int]] = field(default_factory=list)

    @property
    def watched(self) -> list[int]:
        """The ids of the inputs of all subgraphs."""
        return [id(tensor) for subgraph in self.subgraphs for tensor in subgraph.inputs]

    def enter(self, tensors: Iterable[Tensor], inputs: Iterable[Tensor]) -> None:
        """Connects tensors with the inputs of a subgraph, one to one."""
        self.entering += [(id(tensor), id(target)) for tensor, target in zip(tensors, inputs, strict=False)]

    def leave(self, tensors: Iterable[Tensor], output: Tensor) -> None:
        """Says what an output of the node can depend on."""
        self.leaving.append((tuple(map(id, tensors)), id(output)))


def subgraph_links(node: gs.Node) -> SubgraphLinks:
    """The connections of a control-flow node."""
    links = SubgraphLinks(subgraphs_of(node))
    known = {"If": _link_if, "Loop": _link_loop, "Scan": _link_scan}
    link = known.get(node.op, _link_all) if is_standard(node) else _link_all
    link(node, links)
    return links


def _link_if(node: gs.Node, links: SubgraphLinks) -> None:
    """Each output is that of one branch, and the condition says of which."""
    for position, output in enumerate(node.outputs):
        links.leave([node.inputs[0], *(subgraph.outputs[position] for subgraph in links.subgraphs)], output)


def _link_loop(node: gs.Node, links: SubgraphLinks) -> None:
    """The count and both conditions decide on how often the subgraph runs, and so on every output."""
    (subgraph,) = links.subgraphs
    links.enter(node.inputs[1:], subgraph.inputs[1:])
    links.enter(subgraph.outputs, subgraph.inputs[1:])
    control = [*node.inputs[:2], subgraph.outputs[0]]
    for position, output in enumerate(node.outputs):
        first = node.inputs[position + 2 : position + 3]  # the carried value after no round at all
        links.leave([*control, *first, subgraph.outputs[position + 1]], output)


def _link_scan(node: gs.Node, links: SubgraphLinks) -> None:
    """Opset 8 has the lengths of the sequences before the other inputs."""
    (subgraph,) = links.subgraphs
    values = list(node.inputs[len(node.inputs) - len(subgraph.inputs) :])
    carried = len(subgraph.inputs) - int(node.attrs["num_scan_inputs"])
    links.enter(values, subgraph.inputs)
    links.enter(subgraph.outputs[:carried], subgraph.inputs)
    for position, output in enumerate(node.outputs):
        first = values[position : position + 1] if position < carried else []
        links.leave([*first, subgraph.outputs[position]], output)


def _link_all(node: gs.Node, links: SubgraphLinks) -> None:
    """Everything depends on everything."""
    results = [tensor for subgraph in links.subgraphs for tensor in subgraph.outputs]
    for subgraph in links.subgraphs:
        for target in subgraph.inputs:
            links.entering += [(id(tensor), id(target)) for tensor in (*node.inputs, *results)]
    for output in node.outputs:
        links.leave([*node.inputs, *results], output)
