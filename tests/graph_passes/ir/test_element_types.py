"""The types against those that onnx's own inference finds."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx.shape_inference
import pytest

from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.ir.element_types import ElementTypes
from vsfix.graph_passes.ir.graph import graphs_of

BODY = """(float16[N, 4, 8, 8] x, int64 n, bool c, uint8[N] u) => (float16[N, 4, 8, 8] y, int64[2] s) {
    a = Cast <to = 1> (x)
    k = Constant <value = double[1] {1.0}> ()
    f = Constant <value_float = 1.5> ()
    sh = Shape (a)
    s = Slice (sh, one, two)
    o = ConstantOfShape (sh)
    i = ConstantOfShape <value = int32[1] {3}> (sh)
    r = RandomNormal <shape = [2]> ()
    l = RandomUniformLike <dtype = 11> (u)
    t = RandomNormalLike (x)
    e = Equal (a, o)
    v, j = TopK (a, one)
    w = Where (e, i, i)
    q = QuantizeLinear (a, f, z)
    p = If (c) <then_branch = yes () => (float g) { g = Mul (f, f) }, else_branch = no () => (float h) { h = Neg (f) }>
    m = Loop (n, c, x) <body = round (int64 at, bool on, float16[N, 4, 8, 8] old) => (bool more, float16[N, 4, 8, 8] new, bool out) {
        more = Identity (on)
        new = Relu (old)
        out = Not (on)
    }>
    y = Relu (x)
}""".replace("    m = Loop", "    m, stack = Loop")


@pytest.mark.parametrize("opset", [13, 17, 18, 22])
def test_every_type_is_that_of_onnx_inference(opset):
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\nmain {BODY}')
    for name, values, kind in (("one", [1], 7), ("two", [3], 7), ("z", [0], 3)):
        dims = [] if name == "z" else [1]
        model.graph.initializer.append(onnx.helper.make_tensor(name, kind, dims, values))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    expected = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    for node in inferred.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                expected |= {value.name: value.type.tensor_type.elem_type for value in attribute.g.value_info}
    graph = import_graph(model)
    types = ElementTypes(graph)
    found = {t.name: types.of(t) for inner in graphs_of(graph) for node in inner.nodes for t in node.outputs}
    assert len(expected) > 15
    assert {name: found[name] for name in expected} == expected
