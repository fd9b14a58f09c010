"""The cast over operators that each have a rule of their own, against the float32 graph run by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.io.opset import lowest_opset, raise_opset
from vsfix.graph_passes.precision.precision import PRECISIONS, CastPrecision
from vsfix.graph_passes.precision.rounded_activations import emulate

BOUND_DB = {"fp16": 58.0, "bf16": 40.0}


def rnd(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(sum(shape)).normal(size=shape)).astype(np.float32)


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


QUANTIZED = "(float[N, 2, 4, 4] x) => (float[N, 3, 2, 2] y) { q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) y = Conv (d, w) }"
STEP = {"s": number(0.0625), "z": np.int8(0), "w": rnd(3, 2, 3, 3)}
ON_STEPS = np.round(rnd(2, 2, 4, 4) * 16) / 16  # else a rounding moves some of them to the next step
# name: (opset, body, weights, inputs, operators that keep float32 in float16, and in bfloat16)
CASES = {
    "attention with a mask": (
        18,
        """(float[N, 5, 8] x, bool[N, 5, 5] k) => (float[N, 5, 8] y) {
            l = LayerNormalization <axis = -1> (x, g, b)
            q = MatMul (l, wq)
            t = Transpose <perm = [0, 2, 1]> (l)
            s = MatMul (q, t)
            m = Where (k, s, never)
            p = Softmax <axis = -1> (m)
            o = MatMul (p, l)
            e = Erf (o)
            w = Pow (e, two)
            y = Add (w, x)
        }""",
        {"g": rnd(8), "b": rnd(8), "wq": rnd(8, 8, scale=0.2), "never": number(-3.4e38), "two": number(2)},
        {"x": rnd(2, 5, 8), "k": np.tril(np.ones((2, 5, 5), bool))},
        (set(), set()),
    ),
    "scales of quantization, which an early opset keeps in float32": (
        *(13, QUANTIZED, STEP, {"x": ON_STEPS}),
        ({"QuantizeLinear", "DequantizeLinear"}, set()),
    ),
    "scales of quantization, which a later opset casts": (
        *(21, QUANTIZED, STEP, {"x": ON_STEPS}),
        (set(), set()),
    ),
    "a recurrent layer": (
        18,
        "(float[5, N, 4] x) => (float[5, 1, N, 3] y, float[1, N, 3] h) { y, h = LSTM <hidden_size = 3> (x, w, r, b) }",
        {"w": rnd(1, 12, 4, scale=0.3), "r": rnd(1, 12, 3, scale=0.3), "b": rnd(1, 24, scale=0.3)},
        {"x": rnd(5, 2, 4)},
        (set(), set()),
    ),
    "scales that the graph computes from shapes": (
        18,
        """(float[N, 3, 4, 4] x) => (float[N, 3, ?, ?] y) {
            sh = Shape (x)
            f = Cast <to = 1> (sh)
            t = Div (f, f)
            sc = Mul (t, up)
            h = Relu (x)
            y = Resize <mode = "linear"> (h, "", sc)
        }""",
        {"up": np.array([1, 1, 2, 2], np.float32)},
        {"x": rnd(2, 3, 4, 4)},
        ({"Div", "Mul"}, {"Div", "Mul"}),
    ),
    "detections": (
        13,
        """(float[1, 6, 4] boxes, float[1, 2, 6] scores) => (int64[?, 3] i, float[1, 2, 3] v, int64[1, 2, 3] j) {
            b = Mul (boxes, boxes)
            i = NonMaxSuppression (b, scores, n, overlap)
            e = Relu (scores)
            v, j = TopK (e, n)
        }""",
        {"n": np.array([3]), "overlap": np.array([0.5], np.float32)},
        {"boxes": rnd(1, 6, 4), "scores": rnd(1, 2, 6)},
        ({"NonMaxSuppression"}, {"NonMaxSuppression", "TopK"}),
    ),
    "a constant and an input that are outputs": (
        18,
        "(float[N, 4] x) => (float[N, 4] y, float[4] w, float[N, 4] same) { y = Mul (x, w) same = Identity (x) }",
        {"w": rnd(4)},
        {"x": rnd(2, 4)},
        (set(), set()),
    ),
    "a branch that reads an input and an output of the graph around it": (
        18,
        """(float[N, 4] x, bool c) => (float[N, 4] y, float[N, 4] a) {
            a = Relu (x)
            s = If (c) <
                then_branch = yes () => (float[N, 4] p) { p = Add (a, x) },
                else_branch = no () => (float[N, 4] q) { q = Identity (a) }>
            y = Mul (s, a)
        }""",
        {},
        {"x": rnd(2, 4), "c": np.array(True)},
        (set(), set()),
    ),
    "inputs and outputs that are float16 already": (
        18,
        """(float16[N, 4] x) => (float16[N, 4] y, float16[N, 4] h) {
            h = Relu (x)
            k = Sigmoid (h)
            y = Mul (k, h)
        }""",
        {},
        {"x": rnd(2, 4).astype(np.float16)},
        (set(), set()),
    ),
    "casts through float64": (
        18,
        """(float[N, 4] x) => (float[N, 4] y) {
            a = Cast <to = 11> (x)
            b = Mul (a, k)
            c = Cast <to = 1> (b)
            d = Cast <to = 1> (c)
            y = Relu (d)
        }""",
        {"k": rnd(4).astype(np.float64)},
        {"x": rnd(2, 4)},
        (set(), set()),
    ),
    "one weight for three readers": (
        18,
        "(float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, w) b = MatMul (a, w) t = Transpose (w) y = MatMul (b, t) }",
        {"w": rnd(4, 4)},
        {"x": rnd(2, 4)},
        (set(), set()),
    ),
    "padding, bounds, a reduction": (
        17,
        """(float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y) {
            a = InstanceNormalization (x, g, b)
            p = Pad (a, pads, zero)
            u = Slice (p, starts, ends, axes)
            c = Clip (u, low, high)
            z = LeakyRelu <alpha = 0.1> (c)
            m = ReduceMean <axes = [2, 3]> (z)
            y = Sub (z, m)
        }""",
        {
            **{"g": rnd(4), "b": rnd(4), "zero": number(0), "low": number(-1), "high": number(3.4e38)},
            **{"pads": np.array([0, 0, 1, 1, 0, 0, 0, 0]), "starts": np.array([1, 1])},
            **{"ends": np.array([6, 6]), "axes": np.array([2, 3])},
        },
        {"x": rnd(2, 4, 5, 5)},
        (set(), set()),
    ),
    "Upsample, which a later opset calls Resize": (
        9,
        """(float[N, 2, 4, 4] x) => (float[N, 2, 8, 8] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            y = Upsample <mode = "nearest"> (a, sc)
        }""",
        {"w": rnd(2, 2, 3, 3), "sc": np.array([1, 1, 2, 2], np.float32)},
        {"x": rnd(1, 2, 4, 4)},
        (set(), set()),
    ),
}


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_each_operator_keeps_its_numbers_and_only_what_must_keeps_float32(name, precision):
    opset, body, weights, feeds, kept = CASES[name]
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\nmain {body}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(values), key) for key, values in weights.items())
    onnx.checker.check_model(model, full_check=True)
    source, code = model, PRECISIONS[precision]
    needed, reason = lowest_opset(import_graph(model), code)
    if reason:
        source = raise_opset(model, needed, code, reason)
    graph = import_graph(source)
    result = CastPrecision(precision)(graph)
    out = export_model(graph, source)
    onnx.checker.check_model(out, full_check=True)
    assert {entry.subject.split(" ")[0] for entry in result.skipped} == kept[precision == "bf16"]
    for truth, found in zip(run(model, feeds), run(emulate(out, code), feeds), strict=True):
        assert truth.dtype == found.dtype
        if truth.dtype.kind == "f":
            noise = np.sum((truth.astype(np.float64) - found) ** 2)
            assert 10 * np.log10(np.sum(truth.astype(np.float64) ** 2) / max(noise, 1e-300)) > BOUND_DB[precision]
    again = import_graph(out)
    assert not CastPrecision(precision)(again).modified
    assert export_model(again, out).SerializeToString() == out.SerializeToString()
