from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import pytest
from onnx.reference import ReferenceEvaluator

from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.precision.precision import CastPrecision
from vsfix.graph_passes.precision.split_activations import split_activations

X = np.linspace(-8, 8, 400, dtype=np.float32).reshape(4, 100)
BODY = """(float[N, 100] x, bool k) => (float[N, 100] y) {
    h = OP (x)
    y = If (k) <then_branch = t () => (float[N, 100] p) { p = OP (h) },
                else_branch = e () => (float[N, 100] q) { q = Relu (h) }>
}"""


@pytest.mark.parametrize(
    ("op", "opset", "gates"), [("HardSwish", 22, ["HardSigmoid"]), ("Mish", 22, ["Softplus", "Tanh"])]
)
def test_the_product_is_the_activation_in_bodies_too(parse, op, opset, gates):
    model = parse(BODY.replace("OP", op), {}, opset=opset)
    graph = import_graph(model)
    changes = split_activations(graph)
    split = export_model(graph, model)
    onnx.checker.check_model(split, full_check=True)
    assert [node.op_type for node in split.graph.node] == [*gates, "Mul", "If"]
    assert len(changes) == 2
    assert all(op in change.action for change in changes)
    for choice in (True, False):
        wanted, found = (ReferenceEvaluator(m).run(None, {"x": X, "k": np.array(choice)})[0] for m in (model, split))
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert split_activations(graph) == []


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_only_bfloat16_has_need_of_it(parse, precision):
    body = "(float[N, 100] x) => (float[N, 100] y) { y = HardSwish (x) }"
    model = parse(body, {}, opset=22)
    graph = import_graph(model)
    CastPrecision(precision)(graph)
    operators = [node.op for node in graph.nodes]
    assert ("HardSwish" in operators, "HardSigmoid" in operators) == (precision == "fp16", precision == "bf16")


@pytest.mark.parametrize("op", ["HardSwish", "Mish"])
def test_tensorrt_takes_the_product_in_bfloat16_and_not_the_activation(parse, tmp_path, op):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed; run: pip install 'vsfix[rtx]'")
    from vsfix.graph_passes.errors import BuildError
    from vsfix.pipeline.tensorrt.library import open_library

    body = (
        "(float[4, 100] x) => (float[4, 100] y) { h = Cast <to: int = 16> (x)  z = OP (h)  y = Cast <to: int = 1> (z) }"
    )
    model = parse(body.replace("OP", op), {}, opset=22)
    onnx.save(model, tmp_path / "whole.onnx")
    with pytest.raises(BuildError, match=op):
        open_library("tensorrt-rtx").parse(tmp_path / "whole.onnx", model)
    graph = import_graph(model)
    split_activations(graph)
    split = export_model(graph, model)
    onnx.save(split, tmp_path / "split.onnx")
    parsed = open_library("tensorrt-rtx").parse(tmp_path / "split.onnx", split)
    assert {kind for layer in parsed.layers for kind in layer.types} <= {"FLOAT", "BF16"}
