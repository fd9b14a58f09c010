"""Gemm adds a C of any shape that broadcasts, scaled by beta: a fold has to keep each of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import helper

from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("shape", [(), (1,), (6,), (1, 6), (4, 1), (4, 6)])
def test_a_gemm_with_any_shape_of_c_takes_in_the_batch_norm(shape, transposed):
    rng = np.random.default_rng(0)
    values = {"w": rng.normal(size=(6, 5) if transposed else (5, 6)), "c": rng.normal(size=shape)}
    values |= {name: rng.normal(size=6) for name in ("scale", "shift", "mean")} | {"var": rng.random(6) + 0.1}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "c"], ["t"], alpha=0.5, beta=2.0, transB=transposed),
        helper.make_node("BatchNormalization", ["t", "scale", "shift", "mean", "var"], ["y"], name="bn"),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, [4, n]) for name, n in (("x", 5), ("y", 6))]
    weights = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in values.items()]
    graph = helper.make_graph(nodes, "gemm", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    edited = import_graph(model)
    assert FoldBatchNorm()(edited).modified
    x = rng.normal(size=(4, 5))
    product = x @ (values["w"].T if transposed else values["w"])
    inner = 0.5 * product + 2.0 * values["c"] - values["mean"]
    expected = values["scale"] * inner / np.sqrt(values["var"] + np.float32(1e-5)) + values["shift"]
    (found,) = onnx.reference.ReferenceEvaluator(export_model(edited, model)).run(None, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)
