"""How the tests prove a fold: the right nodes left, the numbers, the checker, byte-equal where refused, idle twice.

The truth is onnx's reference evaluator on the unfolded graph in float64; the folded weights are widened to float64 too,
so that what is compared is the fold and its one rounding, not the arithmetic of a runtime.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import onnx.reference
import onnx.shape_inference
from onnx.reference.op_run import OpRun

from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph

BFLOAT16 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
TYPES = {"float16": np.float16, "float": np.float32, "double": np.float64, "bfloat16": BFLOAT16}
ROUNDING = {"float16": 2.0**-11, "float": 2.0**-24, "double": 2.0**-48, "bfloat16": 2.0**-8}
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
IN, OUT = 4, 6
BN = "BatchNormalization"


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape)


def statistics(channels: int = OUT) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(channels)
    return {
        "g": rng.uniform(-2, 2, channels),
        "b": rng.normal(size=channels),
        "m": rng.normal(size=channels),
        "v": rng.uniform(0.3, 3, channels),
    }


def build(body, weights, kind="float", opset=18, kinds=None):
    """A model of `body`, in which FLOAT stands for the type."""
    version = 10 if opset > 20 else 8
    body = body.replace("FLOAT", kind)
    model = onnx.parser.parse_model(f'<ir_version: {version}, opset_import: ["" : {opset}]>\nmain {body}')
    for name, values in weights.items():
        values = np.asarray(values)
        dtype = TYPES[(kinds or {}).get(name, kind)] if values.dtype == np.float64 else values.dtype
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(dtype), name))
    if any(not info.type.tensor_type.elem_type for info in model.graph.output):
        model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with everything in float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)

    def change(graph: onnx.GraphProto) -> None:
        for index, tensor in enumerate(graph.initializer):
            if tensor.data_type in FLOATS:
                values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
                graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        for info in (*graph.input, *graph.output):
            if info.type.tensor_type.elem_type in FLOATS:
                info.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        del graph.value_info[:]
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    change(attribute.g)

    change(wide.graph)
    return wide


class ConvTranspose(OpRun):
    """Scatters each input through the kernel; the evaluator's own can't do groups of more than one channel."""

    op_domain = ""

    def _run(self, x, w, c=None, group=1, pads=None, **_):
        kernel = w.shape[2:]
        sides = [side + length - 1 for side, length in zip(x.shape[2:], kernel, strict=True)]
        y = np.zeros((x.shape[0], group, w.shape[1], *sides))
        xs, ws = x.reshape(x.shape[0], group, -1, *x.shape[2:]), w.reshape(group, -1, *w.shape[1:])
        for offset in itertools.product(*map(range, kernel)):
            window = tuple(slice(o, o + side) for o, side in zip(offset, x.shape[2:], strict=True))
            y[(slice(None),) * 3 + window] += np.einsum("ngi...,gio->ngo...", xs, ws[(slice(None),) * 3 + offset])
        y = y.reshape(x.shape[0], -1, *sides)
        begin = list(pads or [0] * 2 * len(kernel))
        inner = tuple(slice(begin[i], sides[i] - begin[i + len(kernel)]) for i in range(len(kernel)))
        y = y[(slice(None),) * 2 + inner]
        return (y if c is None or not np.size(c) else y + c.reshape(-1, *(1 for _ in kernel)),)


class BatchNormalization(OpRun):
    """Inference; the evaluator's own takes every one before opset 14 for training."""

    op_domain = ""

    def _run(self, x, g, b, m, v, epsilon=None, **_):
        g, b, m, v = (row.reshape(-1, *(1 for _ in x.shape[2:])) for row in (g, b, m, v))
        return (g * (x - m) / np.sqrt(v + np.float64(np.float32(1e-5 if epsilon is None else epsilon))) + b,)


def evaluate(model: onnx.ModelProto, **more) -> list[np.ndarray]:
    model = widen(model)
    inputs = {}
    for info in model.graph.input:
        tensor = info.type.tensor_type
        if tensor.elem_type == onnx.TensorProto.DOUBLE:
            shape = [dim.dim_value or 3 for dim in tensor.shape.dim]
            inputs[info.name] = np.random.default_rng(0).normal(size=shape)
    return onnx.reference.ReferenceEvaluator(model, new_ops=[ConvTranspose, BatchNormalization]).run(
        None, inputs | more
    )


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference against the root mean square of the truth."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.sqrt((expected**2).mean()))


def prove(model, left, kind="float", fold=None, **more):
    """The five proofs; returns the folded model and the result."""
    fold = fold or FoldBatchNorm()
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString()
    result = fold(graph)
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node] == left
    if not result.modified:
        assert after.SerializeToString() == before
    for found, expected in zip(evaluate(after, **more), evaluate(model, **more), strict=True):
        assert error(found, expected) < 40 * ROUNDING[kind]
    again = after.SerializeToString()
    assert not fold(graph).modified
    assert export_model(graph, model).SerializeToString() == again
    return after, result


def image(text: str, out="y", shape="N, 4, 5, 5"):
    return (
        f"(FLOAT[{shape}] x) => (FLOAT[{out}]) {{ {text} }}"
        if "[" in out
        else f"(FLOAT[{shape}] x) => ({out}) {{ {text} }}"
    )


NORM = "h = BatchNormalization (x, g, b, m, v)\n "
TAIL = "\n y = BatchNormalization (h, g, b, m, v)"


def one(text: str, outputs: str = "y") -> str:
    return f"(FLOAT[N, 4, 7] x) => ({outputs}) {{ {text} }}"
