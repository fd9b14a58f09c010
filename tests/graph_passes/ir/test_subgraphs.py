from __future__ import annotations

import random

import onnx_graphsurgeon as gs
import pytest

from vsfix.graph_passes.ir.subgraphs import NodeOrder


def graph_of(count: int) -> gs.Graph:
    return gs.Graph(nodes=[gs.Node("Relu", name=str(index)) for index in range(count)])


def test_it_edits_the_list_as_a_search_would():
    graph = graph_of(40)
    order, expected, draw = NodeOrder(graph), list(graph.nodes), random.Random(0)
    for step in range(400):
        node = draw.choice(expected)
        position = next(index for index, other in enumerate(expected) if other is node)
        if step % 2:
            new = gs.Node("Mul", name=f"new{step}")
            order.insert_after(node, new)
            expected.insert(position + 1, new)
        else:
            order.remove(node)
            del expected[position]
        assert all(a is b for a, b in zip(graph.nodes, expected, strict=True))


def test_there_is_room_after_one_node_for_any_number_of_others():
    graph = graph_of(2)
    order, first, last = NodeOrder(graph), *graph.nodes
    new = [gs.Node("Mul", name=f"new{index}") for index in range(200)]
    for node in new:
        order.insert_after(first, node)
    assert [node.name for node in graph.nodes] == ["0", *(node.name for node in reversed(new)), "1"]
    order.insert_after(last, gs.Node("Add", name="end"))
    assert graph.nodes[-1].name == "end"


def test_it_knows_which_nodes_are_of_its_graph():
    graph = graph_of(3)
    order, node, other = NodeOrder(graph), graph.nodes[1], gs.Node("Relu", name="1")
    assert node in order
    assert other not in order  # equal, and not the same
    order.remove(node)
    assert node not in order
    with pytest.raises(KeyError):
        order.remove(node)
