from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.ir.constant_expression import constant_tensors, elementwise_chains

WEIGHTS = {name: np.ones(3, np.float32) for name in "cd"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("p = Sub (x, c)\n q = Div (p, d)\n y = Add (c, q)", ["Sub Div Add"]),
        ("p = Sub (x, c)\n q = Relu (p)\n y = Add (c, q)", ["Sub", "Add"]),
        ("p = Sub (x, c)\n q = Mul (p, d)\n y = Add (p, q)", ["Sub", "Mul"]),
        ("p = Sub (c, x)\n q = Div (d, p)\n y = Mul (q, q)", []),
        ("p = Mul (x, c)\n q = Mul (c, d)\n y = Mul (p, q)", ["Mul Mul"]),
    ],
)
def test_a_chain_ends_where_something_else_reads_or_computes(parse, body, expected):
    graph = import_graph(parse(f"(float[N, 3] x) => (float[N, 3] y) {{ {body} }}", WEIGHTS))
    chains = elementwise_chains(graph, constant_tensors(graph))
    assert [" ".join(step.node.op for step in chain) for chain in chains] == expected


def test_a_chain_ends_at_a_graph_output_and_where_a_subgraph_reads(parse):
    body = """(float[N, 3] x, bool t) => (float[N, 3] p, float[N, 3] y) {
        p = Mul (x, c)
        q = Add (p, d)
        r = Mul (q, c)
        z = If (t) <then_branch = a () => (float[N, 3] u) { u = Abs (q) },
                    else_branch = b () => (float[N, 3] w) { w = Exp (q) }>
        y = Add (r, z)
    }"""
    graph = import_graph(parse(body, WEIGHTS))
    chains = elementwise_chains(graph, constant_tensors(graph))
    assert [[step.output.name for step in chain] for chain in chains] == [["p"], ["q"], ["r"]]


def test_the_sign_of_a_step_is_that_of_its_operand(parse):
    body = "p = Sub (x, c)\n q = Div (p, d)\n r = Mul (q, c)\n y = Add (r, d)"
    graph = import_graph(parse(f"(float[N, 3] x) => (float[N, 3] y) {{ {body} }}", WEIGHTS))
    (chain,) = elementwise_chains(graph, constant_tensors(graph))
    assert [(step.shifts, step.sign) for step in chain] == [(True, -1), (False, -1), (False, 1), (True, 1)]
