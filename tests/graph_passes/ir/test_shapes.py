from __future__ import annotations

import numpy as np
import onnx.shape_inference

from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.ir.shapes import TensorShapes

BODY = """(float[N, 3, 8, 8] x) => (float[N, 10] y) {
    c = Conv (x, w)
    r = Relu (c)
    f = Flatten (r)
    s = Reshape (f, to)
    y = Gemm (s, v)
}"""
WEIGHTS = {
    "w": np.zeros((40, 3, 3, 3), np.float32),
    "v": np.zeros((1440, 10), np.float32),
    "to": np.array([-1, 1440]),
}


def test_shapes_that_the_file_does_not_state_are_inferred_without_its_weights(parse):
    model = parse(BODY, WEIGHTS)
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString(deterministic=True)
    shapes = TensorShapes(graph)
    assert shapes.of(graph.inputs[0]) == (None, 3, 8, 8)
    assert [shapes.of(node.outputs[0])[1:] for node in graph.nodes] == [(40, 6, 6), (40, 6, 6), (1440,), (1440,), (10,)]
    assert export_model(graph, model).SerializeToString(deterministic=True) == before


def test_they_are_inferred_once(parse, monkeypatch):
    graph, calls = import_graph(parse(BODY, WEIGHTS)), []
    infer = onnx.shape_inference.infer_shapes
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda model: calls.append(1) or infer(model))
    shapes = TensorShapes(graph)
    for node in graph.nodes:
        shapes.of(node.outputs[0])
    assert calls == [1]


def test_where_nothing_can_be_inferred_the_shape_is_unknown(parse, monkeypatch):
    def fail(_):
        raise onnx.shape_inference.InferenceError("planted")

    graph = import_graph(parse(BODY, WEIGHTS))
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)
    assert TensorShapes(graph).of(graph.nodes[0].outputs[0]) is None
