from __future__ import annotations

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.noise.analysis import analyse_noise
from vsfix.graph_passes.noise.propagation import PassedNode
from vsfix.graph_passes.noise.route import NoiseRoute, noise_route


def routes(model: onnx.ModelProto, name: str) -> list[NoiseRoute]:
    """Every route to one BatchNorm, the nearest first."""
    graph = import_graph(model)
    (batch_norm,) = (found for found in find_batch_norms(graph) if found.name == name)
    return [noise_route(graph, batch_norm, path) for path in analyse_noise(graph).reaching[name]]


def shortest(model: onnx.ModelProto, start: str, end: str) -> int:
    """The second way: the number of nodes between two tensors, by breadth first over the file."""
    steps, reached = 0, {start}
    while end not in reached:
        reached |= {out for node in model.graph.node if reached & set(node.input) for out in node.output}
        steps += 1
        assert steps < 99
    return steps


def test_a_layer_directly_in_front_has_nothing_between(residual):
    route = routes(residual, "bn2")[0]
    assert (route.source, route.noise, route.distance, route.batch_norm) == ("d2", "dropout:0.5", "direct", "bn2")
    assert route.before == (PassedNode("Conv", "c2"),)
    assert route.through == ()
    assert route.behind == (PassedNode("Relu", "r2"),)


@pytest.mark.parametrize(
    ("name", "source"), [("bn1", "d1"), ("bn2", "d1"), ("bn2", "d2"), ("bn3", "d1"), ("bn3", "d2")]
)
def test_the_route_is_as_short_as_any_and_each_node_reads_the_one_before(residual, name, source):
    (route,) = (route for route in routes(residual, name) if route.source == source)
    (target,) = (node.input[0] for node in residual.graph.node if f"{name}.weight" in node.input)
    assert len(route.through) == shortest(residual, source, target)
    nodes = {node.output[0]: node for node in residual.graph.node}
    at = source
    for passed in route.through:
        assert at in nodes[passed.name].input
        assert passed.operator == nodes[passed.name].op_type
        at = passed.name
    assert at == target


def test_noise_on_an_input_has_nothing_in_front_and_every_reader_stands_behind(parse):
    weights = {name: np.ones(3, np.float32) for name in ("g", "b", "m", "v")}
    body = """(float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
        d = Dropout (x)
        n = BatchNormalization (d, g, b, m, v)
        y = Relu (n)
        z = Abs (n)
    }"""
    (route,) = routes(parse(body, weights), "n")
    assert route.before == ()
    assert {node.operator for node in route.behind} == {"Relu", "Abs"}
