from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.ir.constant_expression import constant_tensors, factors, terms

ROW = np.array([1.0, 4.0, 9.0], np.float32)
WEIGHTS = {name: ROW + number for number, name in enumerate("abcde")} | {"one": np.array([1]), "k": np.float32(-0.5)}


def expression(parse, body: str):
    """The graph of y = x + z, and z, which `body` computes."""
    graph = import_graph(parse(f"(float[N, 3] x) => (float[N, 3] y) {{ {body}\n y = Add (x, z) }}", WEIGHTS))
    return graph, graph.nodes[-1].inputs[1]


@pytest.mark.parametrize(
    ("body", "powers"),
    [
        ("p = Mul (a, b)\n z = Div (p, c)", [("a", 1), ("b", 1), ("c", -1)]),
        ("p = Sqrt (a)\n z = Reciprocal (p)", [("a", -0.5)]),
        ("p = Pow (a, k)\n z = Div (b, p)", [("b", 1), ("a", 0.5)]),
        ("u = Unsqueeze (a, one)\n q = Squeeze (u, one)\n p = Sqrt (q)\n z = Div (p, b)", [("a", 0.5), ("b", -1)]),
        ("p = Add (a, b)\n z = Sqrt (p)", [("p", 0.5)]),
    ],
)
def test_a_product_is_taken_apart_and_its_factors_give_it_back(parse, body, powers):
    graph, z = expression(parse, body)
    found = factors(graph, z)
    assert [(factor.tensor.name, factor.power) for factor in found] == powers
    product = np.prod([factor.raised for factor in found], axis=0)
    values = {name: array.astype(np.float64) for name, array in WEIGHTS.items()} | {"p": 2 * ROW.astype(np.float64) + 1}
    np.testing.assert_allclose(product, np.prod([values[name] ** power for name, power in powers], axis=0), rtol=1e-12)


def test_a_sum_is_taken_apart_with_its_signs(parse):
    _, z = expression(parse, "p = Sub (a, b)\n n = Neg (p)\n q = Mul (c, d)\n z = Sub (n, q)")
    assert [(tensor.name, sign) for tensor, sign in terms(z)] == [("a", -1), ("b", 1), ("q", -1)]


def test_what_depends_on_an_input_is_not_constant(parse):
    graph, _ = expression(parse, "p = Mul (a, b)\n r = Relu (x)\n q = Mul (r, a)\n s = Add (p, p)\n z = Sqrt (s)")
    constant = constant_tensors(graph)
    names = {tensor.name for node in graph.nodes for tensor in node.outputs if id(tensor) in constant}
    assert names == {"p", "s", "z"}
