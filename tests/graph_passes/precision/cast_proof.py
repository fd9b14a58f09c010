"""Networks to cast, and how the tests prove a cast.

The truth is the original network in float64, evaluated by onnx's reference evaluator: `widen` makes that model without
anything of the pass. The bounds are those of the types: half a unit in the last place at each stored number.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnx.reference
import onnx.shape_inference
import onnxruntime
from onnx import TensorProto, numpy_helper

from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.io.opset import lowest_opset, raise_opset
from vsfix.graph_passes.precision.precision import PRECISIONS, CastPrecision

OPSETS = (13, 15, 17, 18, 21, 22)
NARROW = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}
# A network of this depth loses a few bits more than one rounding does, 71 and 53 dB.
BOUND_DB = {"fp16": 53.0, "bf16": 34.0}


def rnd(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(sum(shape)).normal(size=shape)).astype(np.float32)


def bn(channels: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(channels)
    uniform = rng.uniform(0.5, 2, (2, channels)).astype(np.float32)
    return {"g": uniform[0], "be": rnd(channels), "m": rnd(channels, scale=0.3), "v": uniform[1]}


NETWORKS = {
    "convolutional": (
        """(float[N, 4, 8, 8] x) => (float[N, 5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            r = Relu (a)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
            n = BatchNormalization (p, g, be, m, v)
            q = AveragePool <kernel_shape = [2, 2]> (n)
            c = Concat <axis = 1> (q, q)
            s = GlobalAveragePool (c)
            f = Flatten (s)
            y = Gemm <transB = 1> (f, u, d)
        }""",
        {"w": rnd(6, 4, 3, 3, scale=0.3), "b": rnd(6), "u": rnd(5, 12), "d": rnd(5), **bn(6)},
        {"x": rnd(3, 4, 8, 8)},
    ),
    "perceptron, two inputs, two outputs, one of them inside": (
        """(float[N, 6] x, float[N, 6] z) => (float[N, 6] h, float[N, 4] y) {
            t = Add (x, z)
            k = MatMul (t, w)
            h = BatchNormalization (k, g, be, m, v)
            r = Relu (h)
            y = Gemm (r, u)
        }""",
        {"w": rnd(6, 6), "u": rnd(6, 4), **bn(6)},
        {"x": rnd(5, 6), "z": rnd(6, 5).T.copy()},
    ),
    "resized by constant scales": (
        """(float[N, 4, 4, 4] x) => (float[N, 6, 8, 8] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            i = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (a, "", sc)
            y = Relu (i)
        }""",
        {"w": rnd(6, 4, 3, 3), "sc": np.array([1, 1, 2, 2], np.float32)},
        {"x": rnd(2, 4, 4, 4)},
    ),
    "branches": (
        """(float[N, 6] x, bool c) => (float[N, 4] y) {
            h = Relu (x)
            s = If (c) <
                then_branch = yes () => (float[N, 4] t) { t = MatMul (h, w) },
                else_branch = no () => (float[N, 4] e) { k = MatMul (h, w) e = Neg (k) }>
            y = Add (s, b)
        }""",
        {"w": rnd(6, 4), "b": rnd(4)},
        {"x": rnd(5, 6), "c": np.array(False)},
    ),
    "rounds of a loop": (
        """(float[N, 6] x, int64 count) => (float[N, 6] y) {
            go = Constant <value = bool {1}> ()
            y = Loop (count, go, x) <body = round (int64 i, bool on, float[N, 6] old) => (bool more, float[N, 6] new) {
                more = Identity (on)
                k = MatMul (old, w)
                new = Add (k, b)
            }>
        }""",
        {"w": rnd(6, 6, scale=0.4), "b": rnd(6)},
        {"x": rnd(5, 6), "count": np.array(3, np.int64)},
    ),
    "integers in, a filled tensor, a constant node": (
        """(int64[N, 3] ids) => (float[N, 3, 4] y, int64[N, 3] same) {
            e = Gather (w, ids)
            sh = Shape (e)
            o = ConstantOfShape <value = float[1] {0.5}> (sh)
            k = Constant <value = float[4] {1.0, 2.5, -3.0, 0.125}> ()
            a = Mul (e, k)
            b = Add (a, o)
            f = Cast <to = 1> (ids)
            ax = Constant <value = int64[1] {2}> ()
            f3 = Unsqueeze (f, ax)
            y = Add (b, f3)
            same = Add (ids, ids)
        }""",
        {"w": rnd(9, 4)},
        {"ids": np.array([[1, 2, 8], [0, 5, 3]])},
    ),
}


def build(name: str, opset: int) -> onnx.ModelProto:
    body, weights, _ = NETWORKS[name]
    return parse(body, weights, opset)


def parse(body: str, weights: dict[str, np.ndarray], opset: int = 18) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\nmain {body}')
    model.graph.initializer.extend(numpy_helper.from_array(values, key) for key, values in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def cast(model: onnx.ModelProto, precision: str) -> tuple[onnx.ModelProto, CastPrecision, tuple]:
    graph = import_graph(model)
    opset, reason = lowest_opset(graph, PRECISIONS[precision])
    if reason:
        model = raise_opset(model, opset, PRECISIONS[precision], reason)
        graph = import_graph(model)
    run = CastPrecision(precision)
    result = run(graph)
    out = export_model(graph, model)
    onnx.checker.check_model(out, full_check=True)
    return out, run, result


def snr_db(truth: np.ndarray, found: np.ndarray) -> float:
    truth, noise = truth.astype(np.float64), found.astype(np.float64) - truth.astype(np.float64)
    return float(10 * np.log10((truth**2).sum() / max((noise**2).sum(), 1e-300)))


def widen(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a float32 model in float64; BatchNormalization written out, for the evaluator's differs by opset."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for graph in graphs(wide.graph):
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and tensor.name != "sc":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.DOUBLE
                if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                    attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float64)))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in wide.graph.initializer}
    nodes = list(wide.graph.node)
    del wide.graph.node[:]
    for node in nodes:
        if node.op_type != "BatchNormalization":
            wide.graph.node.append(node)
            continue
        g, be, m, v = (values[name] for name in node.input[1:])
        rank = (-1, 1, 1) if any(n.op_type == "Conv" for n in nodes) else (-1,)
        gain = g / np.sqrt(v + np.float64(np.float32(1e-5)))
        for key, array in (("gain", gain), ("shift", be - gain * m)):
            wide.graph.initializer.append(numpy_helper.from_array(array.reshape(rank), f"{node.output[0]}.{key}"))
        out = node.output[0]
        wide.graph.node.append(onnx.helper.make_node("Mul", [node.input[0], f"{out}.gain"], [f"{out}.scaled"]))
        wide.graph.node.append(onnx.helper.make_node("Add", [f"{out}.scaled", f"{out}.shift"], [out]))
    doubles = {key: value.astype(np.float64) if value.dtype == np.float32 else value for key, value in feeds.items()}
    return onnx.reference.ReferenceEvaluator(wide).run(None, doubles)


def graphs(graph: onnx.GraphProto):
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def all_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for graph in graphs(model.graph) for node in graph.node]


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The element types that onnx's own inference finds, in strict mode."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    types: dict[str, int] = {}
    for graph in graphs(inferred.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            types[value.name] = value.type.tensor_type.elem_type
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return types
