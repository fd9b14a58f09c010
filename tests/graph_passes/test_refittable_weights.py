"""The form in which a repair changes the values of named weights and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.graph_pass import PassPipeline
from vsfix.graph_passes.model_file import export_model, import_graph
from vsfix.graph_passes.refittable_weights import quantized_node, refit_passes, refittable_weights

RNG = np.random.default_rng(5)
GRAPH = """(float[N, 3, 8, 8] x) => (float[N, 5] y) {
    [conv] c = Conv (x, w, b)
    [norm] n = BatchNormalization (c, g, s, m, v)
    [drop] d = Dropout (n, ratio)
    [relu] r = Relu (d)
    [last] l = BatchNormalization (r, g2, s2, m2, v2)
    [pool] p = ReduceMax <keepdims: int = 0> (l, axes)
    [times] t = Mul (p, two)
    [product] q = MatMul (t, k)
    [bias] y = Add (q, z)
}"""
WEIGHTS = {
    "w": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "b": RNG.normal(size=4).astype(np.float32),
    **{name: RNG.uniform(0.5, 1.5, 4).astype(np.float32) for name in ("g", "s", "m", "v", "g2", "s2", "m2", "v2")},
    "ratio": np.float32(0.5),
    "axes": np.array([2, 3]),
    "two": np.float32(2),
    "k": RNG.normal(size=(4, 5)).astype(np.float32),
    "z": RNG.normal(size=5).astype(np.float32),
}


@pytest.fixture
def refit_form(parse):
    """The graph of a network in refit form, and the model that it was."""

    def take(**weights):
        model = parse(GRAPH, WEIGHTS | weights)
        graph = import_graph(model)
        PassPipeline(refit_passes())(graph)
        return graph, model

    return take


def test_every_batch_norm_becomes_weights_with_names(refit_form):
    graph, _ = refit_form()
    assert {node.op for node in graph.nodes} == {"Conv", "Relu", "Mul", "Add", "ReduceMax", "MatMul"}
    assert refittable_weights(graph) == ("w", "b", "last.scale", "last.shift", "k", "z")


def test_it_computes_the_same(refit_form, open_model):
    graph, model = refit_form()
    inputs = {"x": RNG.normal(size=(3, 3, 8, 8)).astype(np.float32)}
    with open_model(model) as before, open_model(export_model(graph, model)) as after:
        np.testing.assert_allclose(after.run(inputs)["y"], before.run(inputs)["y"], rtol=2e-5, atol=2e-5)


def test_other_statistics_change_the_values_of_the_weights_and_nothing_else(refit_form):
    before, after = (
        export_model(*refit_form(**weights)) for weights in ({}, {"v": 4 * WEIGHTS["v"], "m2": WEIGHTS["m2"] + 1})
    )
    changed = {
        old.name for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True) if old != new
    }
    assert changed == {"w", "b", "last.shift"}
    assert list(before.graph.node) == list(after.graph.node)


def test_a_second_run_changes_nothing(refit_form):
    graph, model = refit_form()
    before = export_model(graph, model)
    assert not PassPipeline(refit_passes())(graph).modified
    assert export_model(graph, model) == before


def test_a_product_that_is_no_batch_norm_is_left_out(parse):
    body = "(float[N, 4] x) => (float[N, 4] y) { t = Mul (x, a)  u = Add (t, b)  y = Mul (u, c) }"
    weights = {"a": np.full(4, 2, np.float32), "b": np.ones((1, 4), np.float32), "c": np.ones(4, np.float32)}
    assert refittable_weights(import_graph(parse(body, weights))) == ()
    assert refittable_weights(import_graph(parse(body, weights | {"b": np.ones(4, np.float32)}))) == ("a", "b")


def test_whole_numbers_are_left_out(parse):
    body = "(int32[N, 4] x) => (int32[N, 4] y) { y = MatMul (x, w) }"
    assert refittable_weights(import_graph(parse(body, {"w": np.eye(4, dtype=np.int32)}))) == ()


def test_a_node_that_quantises_is_found_in_bodies_too(parse):
    inner = "(bool c, float[4] x) => (float[4] y) { y = If (c) <then_branch = a () => (float[4] t) { q = QuantizeLinear (x, s) t = DequantizeLinear (q, s) }, else_branch = b () => (float[4] e) { e = Identity (x) }> }"
    assert quantized_node(import_graph(parse(inner, {"s": np.float32(0.1)}))) == "q"
    assert quantized_node(import_graph(parse(GRAPH, WEIGHTS))) is None
