"""The emulation against arithmetic in the types themselves: numpy's, and torch's bfloat16."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.precision.precision import PRECISIONS, CastPrecision
from vsfix.graph_passes.precision.rounded_activations import emulate


def cast(body: str, weights: dict[str, np.ndarray], precision: str, kept: tuple[str, ...] = ()) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 22]>\nmain {body}')
    model.graph.initializer.extend(numpy_helper.from_array(values, key) for key, values in weights.items())
    graph = import_graph(model)
    CastPrecision(precision, kept)(graph)
    return export_model(graph, model)


def emulated(
    body: str, weights: dict[str, np.ndarray], precision: str, x: np.ndarray, kept: tuple[str, ...] = ()
) -> np.ndarray:
    emulated = emulate(cast(body, weights, precision, kept), PRECISIONS[precision])
    session = onnxruntime.InferenceSession(emulated.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_sums_and_products_are_those_of_the_type_to_the_bit(precision, dtype):
    rng = np.random.default_rng(1)
    x, k, b = rng.normal(size=(50, 8)), rng.normal(size=8), rng.normal(size=8)
    x, k, b = (array.astype(np.float32) for array in (x, k, b))
    body = "(float[N, 8] x) => (float[N, 8] y) { h = Mul (x, k)\n i = Add (h, b)\n y = Mul (i, x) }"
    found = emulated(body, {"k": k, "b": b}, precision, x)
    narrow = x.astype(dtype)
    expected = (narrow * k.astype(dtype) + b.astype(dtype)) * narrow
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert np.any(found != (x * k + b) * x), "it does round"


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
@pytest.mark.parametrize("kept", [("h",), ("i",), ("j",), ("h", "i"), ("h", "j"), ("i", "j"), ("h", "i", "j", "y")])
def test_a_kept_node_sees_all_digits_and_the_others_what_the_type_holds(precision, dtype, kept):
    """Each of x, h and i is read by nodes on both sides of the border."""
    rng = np.random.default_rng(1)
    x, k, b = (rng.normal(size=size).astype(np.float32) for size in ((50, 8), 8, 8))
    body = "(float[N, 8] x) => (float[N, 8] y) { h = Mul (x, k)\n i = Add (h, b)\n j = Mul (i, h)\n y = Add (j, x) }"
    found = emulated(body, {"k": k, "b": b}, precision, x, kept)
    known = {"x": x, "k": k, "b": b}
    nodes = {
        "h": ("x", "k", np.multiply),
        "i": ("h", "b", np.add),
        "j": ("i", "h", np.multiply),
        "y": ("j", "x", np.add),
    }
    for name, (first, second, compute) in nodes.items():
        type_of = np.float32 if name in kept else dtype
        known[name] = compute(known[first].astype(type_of), known[second].astype(type_of))
    np.testing.assert_array_equal(found, known["y"].astype(np.float32))
    if kept != ("j",):  # a product of narrow numbers, rounded once in either case
        assert np.any(found != emulated(body, {"k": k, "b": b}, precision, x))


def test_a_bfloat16_convolution_is_that_of_torch_to_a_rounding():
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(2, 3, 8, 8)).astype(np.float32), rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    found = emulated("(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { y = Conv (x, w) }", {"w": w}, "bf16", x)
    half = [torch.from_numpy(array).to(torch.bfloat16) for array in (x, w)]
    expected = torch.nn.functional.conv2d(*half).float().numpy()
    np.testing.assert_allclose(found, expected, rtol=2**-7, atol=1e-2)
    assert np.mean(found == expected) > 0.95


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 55), ("bf16", 38)])
def test_the_narrow_file_itself_in_the_evaluator_of_onnx_agrees(precision, bound):
    """Not to the bit: the evaluator sums in the narrow type, which no hardware does."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)), "u": rng.normal(size=(6, 6)), "v": rng.uniform(1, 2, 4)}
    weights |= {key: rng.normal(size=4) for key in ("g", "b", "m")}
    weights = {key: values.astype(np.float32) for key, values in weights.items()}
    body = """(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
        h = Conv (x, w)
        r = Relu (h)
        n = BatchNormalization (r, g, b, m, v)
        y = MatMul (n, u)
    }"""
    truth = onnx.reference.ReferenceEvaluator(cast(body, weights, precision)).run(None, {"x": x})[0]
    found = emulated(body, weights, precision, x)
    noise = np.sum((truth.astype(np.float64) - found) ** 2)
    assert 10 * np.log10(np.sum(truth.astype(np.float64) ** 2) / noise) > bound


def test_an_overflow_of_float16_becomes_infinite():
    body = "(float[N, 1] x) => (float[N, 1] y) { h = Mul (x, x)\n y = Sqrt (h) }"
    assert np.isinf(emulated(body, {}, "fp16", np.array([[300]], np.float32)))
