from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import pytest

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.ir.remove_identities import RemoveIdentities
from vsfix.graph_passes.noise.marker import RemoveMarkers


def run(body: str, graph_pass, open_model):
    """Applies a pass; checks that the outputs stay bit-equal and that a second run is idle; returns the operators."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\nmain {body}')
    graph = import_graph(model)
    result = graph_pass(graph)
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    inputs = {"x": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}
    before_run, after_run = open_model(model).run(inputs), open_model(after).run(inputs)
    assert list(before_run) == list(after_run)
    for name in before_run:
        np.testing.assert_array_equal(after_run[name], before_run[name])
    assert not graph_pass(graph).modified
    return [node.op_type for node in after.graph.node], result


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Abs (x)\n d = Dropout (a)\n y = Exp (d)", ["Abs", "Exp"]),
        ("a = Abs (x)\n y = Dropout (a)", ["Abs"]),
        ("a = Abs (x)\n d = Dropout (a)\n e = Dropout (d)\n y = Add (d, e)", ["Abs", "Add"]),
        ("a = Abs (x)\n b = Exp (a)\n y = Dropout (a)\n", ["Abs", "Exp"]),
        ("y = Dropout (x)", ["Identity"]),
    ],
)
def test_markers_go_and_the_outputs_are_unchanged(body, left, open_model):
    operators, result = run(f"(float[N, 3] x) => (float[N, 3] y) {{ {body} }}", RemoveMarkers(), open_model)
    assert operators == left
    assert result.modified


def test_a_marker_between_two_graph_outputs_becomes_an_identity(open_model):
    body = "(float[N, 3] x) => (float[N, 3] a, float[N, 3] y) { a = Abs (x)\n y = Dropout (a) }"
    operators, result = run(body, RemoveMarkers(), open_model)
    assert operators == ["Abs", "Identity"]
    assert "two graph outputs" in result.changed[0].action


def test_a_marker_that_a_subgraph_reads_goes(open_model):
    body = """(float[N, 3] x) => (float[N, 3] y) {
        s = ReduceMax <keepdims: int = 0> (x)
        c = Cast <to: int = 9> (s)
        d = Dropout (x)
        y = If (c) <then_branch = t () => (float[N, 3] p) { p = Abs (d) },
                    else_branch = e () => (float[N, 3] q) { q = Exp (d) }>
    }"""
    operators, _ = run(body, RemoveMarkers(), open_model)
    assert operators == ["ReduceMax", "Cast", "If"]


def test_identities_go(open_model):
    body = "(float[N, 3] x) => (float[N, 3] y) { a = Identity (x)\n b = Abs (a)\n y = Identity (b) }"
    operators, _ = run(body, RemoveIdentities(), open_model)
    assert operators == ["Abs"]


def test_a_dropout_that_is_switched_on_is_an_error():
    body = "(float[N, 3] x, float r, bool t) => (float[N, 3] y) { y = Dropout (x, r, t) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\nmain {body}')
    with pytest.raises(ModelError, match="training mode"):
        RemoveMarkers()(import_graph(model))
