"""Each fold: the right nodes changed, the others not, the same numbers, the full checker, and a second run idle."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
import pytest

from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph

RNG = np.random.default_rng(3)


def bn_weights(channels: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(channels)
    return {
        "g": rng.uniform(-2, 2, channels).astype(np.float32),
        "b": rng.normal(size=channels).astype(np.float32),
        "m": rng.normal(size=channels).astype(np.float32),
        "v": rng.uniform(0.1, 3, channels).astype(np.float32),
    }


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


CONV = "(float[N, 4, {dims}] x) => (y) {{ h = Conv <{attrs}> (x, w{bias})\n y = BatchNormalization (h, g, b, m, v) }}"
FOLDS = {
    "conv 1d": (CONV.format(dims="9", attrs="group: int = 1", bias=", c"), {"w": random(6, 4, 3), "c": random(6)}, 6),
    "conv 2d": (CONV.format(dims="9, 9", attrs="group: int = 1", bias=""), {"w": random(6, 4, 3, 3)}, 6),
    "conv 3d": (
        CONV.format(dims="5, 5, 5", attrs="group: int = 1", bias=", c"),
        {"w": random(6, 4, 2, 2, 2), "c": random(6)},
        6,
    ),
    "conv grouped": (
        CONV.format(dims="9, 9", attrs="group: int = 2", bias=", c"),
        {"w": random(6, 2, 3, 3), "c": random(6)},
        6,
    ),
    "conv empty bias": (CONV.format(dims="9, 9", attrs="group: int = 1", bias=', ""'), {"w": random(6, 4, 3, 3)}, 6),
    "gemm": (
        "(float[N, 4] x) => (y) { h = Gemm (x, w, c)\n y = BatchNormalization (h, g, b, m, v) }",
        {"w": random(4, 6), "c": random(6)},
        6,
    ),
    "gemm transposed": (
        "(float[N, 4] x) => (y) { h = Gemm <transB: int = 1> (x, w)\n y = BatchNormalization (h, g, b, m, v) }",
        {"w": random(6, 4)},
        6,
    ),
    "gemm alpha beta": (
        "(float[N, 4] x) => (y) { h = Gemm <alpha: float = 0.5, beta: float = 3.0> (x, w, c)\n y = BatchNormalization (h, g, b, m, v) }",
        {"w": random(4, 6), "c": random(1, 6)},
        6,
    ),
    "gemm scalar bias": (
        "(float[N, 4] x) => (y) { h = Gemm (x, w, c)\n y = BatchNormalization (h, g, b, m, v) }",
        {"w": random(4, 6), "c": random(1)},
        6,
    ),
}


def build(body: str, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\nmain {body}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    return onnx.shape_inference.infer_shapes(model)


def random_input(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    tensor = model.graph.input[0]
    shape = [dim.dim_value or 5 for dim in tensor.type.tensor_type.shape.dim]
    return {tensor.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}


def fold(model: onnx.ModelProto):
    graph = import_graph(model)
    result = FoldBatchNorm()(graph)
    folded = export_model(graph, model)
    onnx.checker.check_model(folded, full_check=True)
    return result, folded, graph


@pytest.mark.parametrize("case", FOLDS)
def test_a_fold_keeps_the_numbers_and_leaves_no_batch_norm(case, open_model):
    body, weights, channels = FOLDS[case]
    model = build(body, weights | bn_weights(channels))
    result, folded, graph = fold(model)
    assert [change.subject for change in result.changed] == ["y"]
    assert [node.op_type for node in folded.graph.node] == [model.graph.node[0].op_type]
    inputs = random_input(model)
    before, after = open_model(model).run(inputs)["y"], open_model(folded).run(inputs)["y"]
    np.testing.assert_allclose(after, before, rtol=2e-5, atol=2e-5)
    assert not FoldBatchNorm()(graph).modified


def test_a_wrong_epsilon_would_be_seen(open_model):
    body, weights, channels = FOLDS["conv 2d"]
    model = build(body, weights | bn_weights(channels))
    _, folded, _ = fold(model)
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("epsilon", 1e-3))
    inputs = random_input(model)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            open_model(folded).run(inputs)["y"], open_model(model).run(inputs)["y"], rtol=2e-5, atol=2e-5
        )


def test_the_folded_weight_is_float64_rounded_once():
    body, weights, channels = FOLDS["conv 2d"]
    parameters = bn_weights(channels)
    _, folded, _ = fold(build(body, weights | parameters))
    g = parameters["g"].astype(np.longdouble) / np.sqrt(
        parameters["v"].astype(np.longdouble) + np.longdouble(np.float32(1e-5))
    )
    expected = (weights["w"] * g[:, None, None, None]).astype(np.float32)
    found = onnx.numpy_helper.to_array(folded.graph.initializer[0])
    np.testing.assert_array_max_ulp(found, expected, maxulp=1)


def test_a_shared_weight_is_copied_and_the_other_reader_keeps_the_old(open_model):
    body = """(float[N, 4, 9, 9] x) => (y, z) {
        h = Conv (x, w)
        y = BatchNormalization (h, g, b, m, v)
        z = Conv (x, w)
    }"""
    model = build(body, {"w": random(6, 4, 3, 3)} | bn_weights(6))
    _, folded, _ = fold(model)
    before, after = open_model(model).run(random_input(model)), open_model(folded).run(random_input(model))
    np.testing.assert_array_equal(after["z"], before["z"])
    np.testing.assert_allclose(after["y"], before["y"], rtol=2e-5, atol=2e-5)


def test_a_weight_that_is_a_graph_output_keeps_its_values(open_model):
    body = """(float[N, 4, 9, 9] x) => (y, float[6, 4, 3, 3] w) {
        h = Conv (x, w)
        y = BatchNormalization (h, g, b, m, v)
    }"""
    model = build(body, {"w": random(6, 4, 3, 3)} | bn_weights(6))
    _, folded, _ = fold(model)
    np.testing.assert_array_equal(open_model(folded).run(random_input(model))["w"], random(6, 4, 3, 3))


REFUSALS = {
    "read 2 times": "h = Conv (x, w)\n y = BatchNormalization (h, g, b, m, v)\n z = Relu (h)",
    "comes from Relu": "c = Conv (x, w)\n h = Relu (c)\n y = BatchNormalization (h, g, b, m, v)\n z = Abs (y)",
    "is an output of the graph": "z = Conv (x, w)\n y = BatchNormalization (z, g, b, m, v)",
    "weight of Conv is computed": "q = Abs (w)\n h = Conv (x, q)\n y = BatchNormalization (h, g, b, m, v)\n z = Abs (y)",
    "weight of Conv has 1 axes": "h = Conv (x, g)\n y = BatchNormalization (h, g, b, m, v)\n z = Abs (y)",
    "bias of Conv is computed": "q = Abs (b)\n h = Conv (x, w, q)\n y = BatchNormalization (h, g, b, m, v)\n z = Abs (y)",
    "is an input of the graph": "y = BatchNormalization (x, g, b, m, v)\n z = Conv (y, w)",
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refusal_has_its_reason_and_changes_no_byte(reason):
    body = f"(float[N, 4, 9, 9] x) => (y, z) {{ {REFUSALS[reason]} }}"
    model = build(body, {"w": random(4, 4, 3, 3)} | bn_weights(4))
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString()
    result = FoldBatchNorm()(graph)
    assert not result.modified
    assert reason in result.skipped[0].reason
    assert export_model(graph, model).SerializeToString() == before


def test_a_fold_that_overflows_is_refused_with_the_channel():
    body, weights, channels = FOLDS["conv 2d"]
    parameters = bn_weights(channels)
    parameters["g"][2], parameters["v"][2] = 1e38, 0
    model = build(body, weights | parameters)
    graph = import_graph(model)
    result = FoldBatchNorm()(graph)
    assert not result.modified
    assert result.skipped[0].reason.startswith("channel 2 would overflow float32")
