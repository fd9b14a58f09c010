from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import pytest

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.ir.fold_constants import FoldConstants, ResolveShapes, evaluate_constant
from vsfix.graph_passes.ir.graph_pass import PassPipeline

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
    result = FoldConstants()(graph)
    assert [change.subject for change in result.changed] == ["constants"]
    (batch_norm,) = find_batch_norms(graph)
    np.testing.assert_array_equal(batch_norm.variance, variance)
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    assert not FoldConstants()(graph).modified
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
    result = FoldConstants()(graph)
    assert result.changed == ()
    assert reason in result.skipped[0].reason
    assert export_model(graph, model).SerializeToString() == before


def test_one_computed_tensor_of_two_batch_norms_is_computed_once(parse):
    body = """(float[N, 3] x) => (float[N, 3] y) {
        q = Mul (v, v)
        h = BatchNormalization (x, g, b, m, q)
        y = BatchNormalization (h, g, b, m, q)
    }"""
    graph = import_graph(parse(body, WEIGHTS))
    FoldConstants()(graph)
    first, second = (node.inputs[4] for node in graph.nodes if node.op == "BatchNormalization")
    assert first is second
    assert len(graph.nodes) == 2


def test_the_limit_counts_stored_elements_too(parse):
    graph = import_graph(build(parse, "q = Abs (v)", {"v": np.ones(3, np.float32)}))
    q = graph.nodes[0].outputs[0]
    assert isinstance(evaluate_constant(graph, q, max_elements=2), str)
    np.testing.assert_array_equal(evaluate_constant(graph, q, max_elements=3), np.ones(3))


def both(parse, open_model, text: str, weights: dict[str, np.ndarray], inputs: dict[str, np.ndarray]):
    """The graph after both passes, whose outputs were held against those before."""
    model = parse(text, weights)
    graph = import_graph(model)
    PassPipeline([ResolveShapes(), FoldConstants()])(graph)
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    expected = open_model(model).run(inputs)
    for name, values in open_model(after).run(inputs).items():
        np.testing.assert_allclose(values, expected[name], rtol=2e-7, atol=2e-7)
    for run_again in (ResolveShapes(), FoldConstants()):
        assert not run_again(graph).modified
    return graph


X = {"x": RNG.normal(size=(5, 3)).astype(np.float32)}
EXPRESSIONS = {
    "filled like the data": ("c = CastLike (two, x)\n s = Shape (w)\n f = Expand (c, s)\n y = Add (x, f)", ["Add"]),
    "static sides of the data": (
        "s = Shape <start: int = 1> (x)\n f = Expand (two, s)\n y = Add (x, f)",
        ["Add"],
    ),
    "one side of a shape that is partly open": (
        "s = Shape (x)\n i = Constant <value_ints: ints = [1]> ()\n t = Gather (s, i)\n f = Expand (two, t)\n y = Add (x, f)",
        ["Add"],
    ),
    "a slice of a shape that is partly open": (
        "s = Shape (x)\n a = Constant <value_ints: ints = [1]> ()\n e = Constant <value_ints: ints = [2]> ()\n"
        "t = Slice (s, a, e)\n f = Expand (two, t)\n y = Add (x, f)",
        ["Add"],
    ),
    "axes": (
        "a = Constant <value: tensor = int64[1] {-1}> ()\n b = Constant <value_ints: ints = [-1]> ()\n"
        "r = Reshape (a, b)\n y = ReduceMean (x, r)",
        ["ReduceMean"],
    ),
    "weight norm": (
        "a = Constant <value_ints: ints = [1]> ()\n n = ReduceL2 <keepdims: int = 1> (v, a)\n d = Div (v, n)\n"
        "u = Mul (d, g)\n t = Transpose <perm: ints = [1, 0]> (u)\n y = MatMul (x, t)",
        ["MatMul"],
    ),
    "the open side stays": (
        "s = Shape <end: int = 1> (x)\n m = Constant <value_ints: ints = [-1]> ()\n z = Concat <axis: int = 0> (s, m)\n"
        "y = Reshape (x, z)",
        ["Shape", "Concat", "Reshape"],
    ),
}


@pytest.mark.parametrize("case", EXPRESSIONS)
def test_what_reads_constants_alone_is_computed(case, parse, open_model):
    body, operators = EXPRESSIONS[case]
    arrays = {
        "two": np.float32(2),
        "w": np.ones(3, np.float32),
        "v": RNG.normal(size=(4, 3)).astype(np.float32),
        "g": RNG.normal(size=(4, 1)).astype(np.float32),
    }
    used = {name: np.asarray(array) for name, array in arrays.items() if f"({name}," in body or f", {name})" in body}
    used |= {name: arrays[name] for name in ("w",) if "Shape (w)" in body}
    graph = both(parse, open_model, f"(float[N, 3] x) => (float[A, B] y) {{ {body} }}", used, X)
    assert [node.op for node in graph.nodes] == operators


def test_a_wrong_shape_that_an_editor_left_behind_is_not_believed(parse):
    model = parse(
        "(float[N, 3] x) => (float[N, 3] y) { h = Relu (x)\n s = Shape <start: int = 1> (h)\n y = Expand (x, s) }", {}
    )
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, [2, 7]))
    graph = import_graph(model)
    ResolveShapes()(graph)
    (expand,) = [node for node in graph.nodes if node.op == "Expand"]
    np.testing.assert_array_equal(expand.inputs[1].values, [3])


def test_eight_bit_weights_stay_with_their_scale(parse):
    weights = {"q": np.arange(6, dtype=np.int8).reshape(3, 2), "s": np.float32(0.5), "z": np.int8(0)}
    graph = import_graph(
        parse("(float[N, 3] x) => (float[N, 2] y) { w = DequantizeLinear (q, s, z)\n y = MatMul (x, w) }", weights)
    )
    assert not FoldConstants()(graph).modified


def test_what_would_fill_the_memory_stays(parse):
    n = {"n": np.array([3000, 3000])}
    graph = import_graph(parse("(float[N, 1] x) => (float[A, B] y) { f = ConstantOfShape (n)\n y = Add (x, f) }", n))
    assert not FoldConstants()(graph).modified
    large = {"w": np.ones((1100, 1000), np.float32)}  # more than the limit, but it is in the file already
    graph = import_graph(parse("(float[N, 1100] x) => (float[A, B] y) { t = Abs (w)\n y = MatMul (x, t) }", large))
    assert [node.op for node in graph.nodes] == ["Abs", "MatMul"]
    FoldConstants()(graph)
    assert [node.op for node in graph.nodes] == ["MatMul"]


def test_a_constant_that_is_an_output_is_still_written(parse, open_model):
    graph = both(
        parse,
        open_model,
        "(float[N, 3] x) => (float[3] y, float[N, 3] z) { y = Abs (g)\n z = Add (x, y) }",
        {"g": WEIGHTS["g"]},
        X,
    )
    assert {node.op for node in graph.nodes} == {"Constant", "Add"}
