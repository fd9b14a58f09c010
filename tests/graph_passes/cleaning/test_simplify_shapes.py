from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import pytest
from onnx.reference import ReferenceEvaluator

from vsfix.graph_passes.cleaning.simplify_shapes import SimplifyShapes
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.ir.fold_constants import FoldConstants

BATCH = """s = Shape <end: int = 1> (x)\n z = Constant <value_ints: ints = [0]> ()\n n0 = Squeeze (s, z)
    m = Constant <value_ints: ints = [-1]> ()\n n = Reshape (n0, m)\n """
SIZES = "{0} = Constant <value_ints: ints = [{1}]> ()\n "
FOUR, THREE, ONE, SIX = (SIZES.format(*pair) for pair in (("four", 4), ("three", 3), ("one", 1), ("six", 6)))
DOUBLE = f"{BATCH} two = Constant <value_int: int = 2> ()\n p0 = Mul (n0, two)\n p = Reshape (p0, m)\n "
ORDER = "o = Range (w0, n0, w1)\n o2 = Unsqueeze (o, m)\n "
ENDS = "w0 = Constant <value_int: int = 0> ()\n w1 = Constant <value_int: int = 1> ()\n "

# Each on x of shape [N, 4, 6], by what is left.
SIMPLER = {
    "the batch, then a number": (f"{BATCH} {SIX} t = Concat <axis: int = 0> (n, m, six)\n y = Reshape (x, t)", []),
    "one side is free": (
        f"{BATCH} {THREE} t = Concat <axis: int = 0> (n, three, m)\n h = Reshape (x, t)\n y = Abs (h)",
        ["Reshape", "Abs"],
    ),
    "a side that is computed": (
        f"{DOUBLE} {SIX} d = Constant <value_ints: ints = [2]> ()\n t = Concat <axis: int = 0> (p, d, six)\n"
        "y = Reshape (x, t)",
        ["Reshape"],
    ),
    "what a shape undoes": (
        f"{DOUBLE} {FOUR} {SIX} d = Constant <value_ints: ints = [12]> ()\n t = Concat <axis: int = 0> (p, d)\n"
        "h = Reshape (x, t)\n u = Concat <axis: int = 0> (n, four, six)\n k = Reshape (h, u)\n y = Abs (k)",
        ["Abs"],
    ),
    "an Expand to its own shape": (
        f"{BATCH} {FOUR} {SIX} t = Concat <axis: int = 0> (n, four, six)\n h = Expand (x, t)\n y = Abs (h)",
        ["Abs"],
    ),
    "an Expand of one axis": (
        f"{BATCH} {ONE} {FOUR} {THREE} {SIX} a = Unsqueeze (x, one)\n"
        "t = Concat <axis: int = 0> (n, three, four, six)\n y = Expand (a, t)",
        ["Unsqueeze", "Expand"],
    ),
    "a Slice of everything": (
        "a = Constant <value_ints: ints = [0, 0]> ()\n e = Constant <value_ints: ints = [4, 2147483647]> ()\n"
        "i = Constant <value_ints: ints = [1, 2]> ()\n h = Slice (x, a, e, i)\n y = Abs (h)",
        ["Abs"],
    ),
    "Transposes that cancel": (
        "a = Transpose <perm: ints = [0, 2, 1]> (x)\n b = Transpose <perm: ints = [0, 2, 1]> (a)\n y = Abs (b)",
        ["Abs"],
    ),
    "Transposes that add up": (
        "a = Transpose <perm: ints = [1, 2, 0]> (x)\n y = Transpose <perm: ints = [0, 2, 1]> (a)",
        ["Transpose"],
    ),
    "a Concat of one and a Cast to the same": (
        "a = Concat <axis: int = 0> (x)\n b = Cast <to: int = 1> (a)\n y = Abs (b)",
        ["Abs"],
    ),
    "every row written": (
        f"{BATCH} {ENDS} {ORDER} u = Exp (x)\n h = ScatterND (x, o2, u)\n y = Abs (h)",
        ["Exp", "Abs"],
    ),
    "at the end": ("h = Exp (x)\n y = Transpose <perm: ints = [0, 1, 2]> (h)", ["Exp"]),
}
AS_IT_IS = {
    "two sides that are computed": (
        f"{DOUBLE} a = Constant <value_int: int = 3> ()\n q0 = Div (p0, p0)\n q = Reshape (q0, m)\n"
        "d = Constant <value_ints: ints = [12]> ()\n t = Concat <axis: int = 0> (p, q, d)\n y = Reshape (x, t)"
    ),
    "another order of the same sides": (
        f"{BATCH} {FOUR} {SIX} t = Concat <axis: int = 0> (n, six, four)\n h = Reshape (x, t)\n y = Abs (h)"
    ),
    "a Slice of a part": (
        "a = Constant <value_ints: ints = [1]> ()\n e = Constant <value_ints: ints = [2147483647]> ()\n"
        "h = Slice (x, a, e, a)\n y = Abs (h)"
    ),
    "a Slice without the last": (
        "a = Constant <value_ints: ints = [0]> ()\n e = Constant <value_ints: ints = [3]> ()\n"
        "i = Constant <value_ints: ints = [1]> ()\n h = Slice (x, a, e, i)\n y = Abs (h)"
    ),
    "rows added up": f'{BATCH} {ENDS} {ORDER} u = Exp (x)\n y = ScatterND <reduction: string = "add"> (x, o2, u)',
    "rows in a part": (
        f"{BATCH} {ENDS} v = Sub (n0, w1)\n o = Range (w0, v, w1)\n o2 = Unsqueeze (o, m)\n u0 = Exp (x)\n"
        "l = Reshape (v, m)\n b = Reshape (w0, m)\n u = Slice (u0, b, l, b)\n y = ScatterND (x, o2, u)"
    ),
    "a Cast to another type": "h = Cast <to: int = 11> (x)\n y = Cast <to: int = 1> (h)",
}


def simplified(body: str, open_model) -> onnx.GraphProto:
    """The graph after the pass; both runtimes find what they found before, for several sizes of the batch."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]>\nmain (float[N, 4, 6] x) => (float y) {{ {body} }}'
    )
    inputs = [np.random.default_rng(batch).normal(size=(batch, 4, 6)).astype(np.float32) for batch in (1, 2, 5)]
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for axis in range(ReferenceEvaluator(model).run(["y"], {"x": inputs[0]})[0].ndim):
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = f"D{axis}"
    onnx.checker.check_model(model, full_check=True)
    graph = import_graph(model)
    FoldConstants()(graph)
    SimplifyShapes()(graph)
    assert not SimplifyShapes()(graph).modified
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    for x in inputs:
        expected = open_model(model).run({"x": x})["y"]
        for found in (open_model(after).run({"x": x})["y"], ReferenceEvaluator(after).run(["y"], {"x": x})[0]):
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    return after.graph


@pytest.mark.parametrize("case", SIMPLER)
def test_what_only_computes_shapes_goes(case, open_model):
    body, left = SIMPLER[case]
    found = [node.op_type for node in simplified(body, open_model).node]
    assert found == (left or ["Identity"])


@pytest.mark.parametrize("case", AS_IT_IS)
def test_what_changes_something_stays(case, open_model):
    before = onnx.parser.parse_graph(f"g (float[N, 4, 6] x) => (float y) {{ {AS_IT_IS[case]} }}")
    wanted = [node.op_type for node in before.node if node.op_type in ("Reshape", "Slice", "ScatterND", "Cast")][-1]
    assert wanted in [node.op_type for node in simplified(AS_IT_IS[case], open_model).node]


def test_the_sides_of_a_global_pool_are_constants(open_model):
    """The nodes that torch writes for AdaptiveAvgPool and Flatten: TensorRT wants the axes as a constant."""
    body = f"""{BATCH} a0 = Constant <value_ints: ints = [-1]> ()\n a = Reshape (a0, m)\n {FOUR}
        g = ReduceMean <keepdims: int = 1> (x, a)\n t = Concat <axis: int = 0> (n, four)\n y = Reshape (g, t)"""
    graph = simplified(body, open_model)
    assert [node.op_type for node in graph.node] == ["ReduceMean", "Reshape"]
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer}
    assert [stored[node.input[1]] for node in graph.node] == [[-1], [0, 4]]
