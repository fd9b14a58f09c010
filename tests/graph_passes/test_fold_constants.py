from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import pytest

from vsfix.graph_passes.batch_norm import find_batch_norms
from vsfix.graph_passes.fold_constants import FoldBatchNormParameters, evaluate_constant
from vsfix.graph_passes.model_file import export_model, import_graph

RNG = np.random.default_rng(1)
WEIGHTS = {name: RNG.uniform(0.5, 2, 3).astype(np.float32) for name in ("g", "b", "m", "v")}
COMPUTED = {
    "cast": ("q = Cast <to: int = 1> (v64)", {"v64": np.array([1.5, 2.5, 3.5])}, [1.5, 2.5, 3.5]),
    "reshape": ("q = Reshape (v4, s)", {"v4": np.ones((1, 3, 1, 1), np.float32), "s": np.array([-1])}, [1, 1, 1]),
    "arithmetic": (
        "p = Mul (d, d)\n q = Add (p, e)",
        {"d": np.array([1, 2, 3], np.float32), "e": np.float32(1)},
        [2, 5, 10],
    ),
    "filled": ("q = ConstantOfShape <value: tensor = float[1] {2.5}> (n)", {"n": np.array([3])}, [2.5] * 3),
    "filled, of a computed shape": (
        "n = Shape (m)\n q = ConstantOfShape <value: tensor = float[1] {2.5}> (n)",
        {},
        [2.5] * 3,
    ),
    "shared with a reader": ("q = Mul (d, d)\n z = Add (x, q)", {"d": np.array([1, 2, 3], np.float32)}, [1, 4, 9]),
}


def build(parse, body: str, weights: dict[str, np.ndarray], inputs: str = "") -> onnx.ModelProto:
    text = f"(float[N, 3] x{inputs}) => (float[N, 3] y) {{ {body}\n y = BatchNormalization (x, g, b, m, q) }}"
    return parse(text, {name: WEIGHTS[name] for name in "gbm"} | {k: np.asarray(v) for k, v in weights.items()})


@pytest.mark.parametrize("case", COMPUTED)
def test_a_parameter_that_is_computed_from_constants_becomes_one(case, parse, open_model):
    body, weights, variance = COMPUTED[case]
    model = build(parse, body, weights)
    graph = import_graph(model)
    result = FoldBatchNormParameters()(graph)
    assert [change.subject for change in result.changed] == ["y"]
    (batch_norm,) = find_batch_norms(graph)
    np.testing.assert_array_equal(batch_norm.variance, variance)
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    assert not FoldBatchNormParameters()(graph).modified
    x = {"x": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)}
    np.testing.assert_allclose(open_model(after).run(x)["y"], open_model(model).run(x)["y"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "weights", "inputs", "reason"),
    [
        ("q = Abs (w)", {}, ", float[3] w", "depends on 'w', an input"),
        ("q = RandomUniform <shape: ints = [3]> ()", {}, "", "computed by RandomUniform"),
        ("q = ReduceMean <keepdims: int = 0> (x, a)", {"a": np.array([0])}, "", "depends on 'x', an input"),
        ("f = ConstantOfShape (n)\n q = Expand (f, n)", {"n": np.array([2000, 2000])}, "", "more than 1000000"),
        ("q = Reshape (v, s)", {"v": np.ones(3, np.float32), "s": np.array([2, 2])}, "", "can't be computed"),
    ],
)
def test_what_cant_be_computed_in_advance_stays_with_the_reason(body, weights, inputs, reason):
    text = f"(float[N, 3] x{inputs}) => (y) {{ {body}\n y = BatchNormalization (x, g, b, m, q) }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\nmain {text}')
    arrays = WEIGHTS | weights
    model.graph.initializer.extend(onnx.numpy_helper.from_array(arrays[name], name) for name in arrays)
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString()
    result = FoldBatchNormParameters()(graph)
    assert result.changed == ()
    assert reason in result.kept[0].reason
    assert export_model(graph, model).SerializeToString() == before


def test_one_computed_tensor_of_two_batch_norms_is_computed_once(parse):
    body = """(float[N, 3] x) => (float[N, 3] y) {
        q = Mul (v, v)
        h = BatchNormalization (x, g, b, m, q)
        y = BatchNormalization (h, g, b, m, q)
    }"""
    graph = import_graph(parse(body, WEIGHTS))
    FoldBatchNormParameters()(graph)
    first, second = (node.inputs[4] for node in graph.nodes if node.op == "BatchNormalization")
    assert first is second
    assert len(graph.nodes) == 2


def test_the_limit_counts_stored_elements_too(parse):
    graph = import_graph(build(parse, "q = Abs (v)", {"v": np.ones(3, np.float32)}))
    q = graph.nodes[0].outputs[0]
    assert isinstance(evaluate_constant(graph, q, max_elements=2), str)
    np.testing.assert_array_equal(evaluate_constant(graph, q, max_elements=3), np.ones(3))
