"""The walk that casts: which node reads and writes what, and where a Cast stands."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnx.reference
import onnx.shape_inference
import pytest
from onnx import TensorProto, numpy_helper

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.precision.precision import CastPrecision
from vsfix.graph_passes.precision.rounded_activations import emulate

from .cast_proof import NARROW, all_nodes, cast, parse, rnd, run, types_of


def test_a_node_that_is_not_of_the_standard_is_named():
    body = "(float[N, 4] x) => (float[N, 4] y) { h = Relu (x)\n y = other.Mystery (h) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18, "other" : 1]>\nmain {body}')
    with pytest.raises(ModelError, match="Mystery 'y' is not of the ONNX standard"):
        CastPrecision("fp16")(import_graph(model))


SHAPES = """(float[N, 4, {side}, 3] x) => (float[N, 4, ?, 3] y, float[?] r) {{
    sh = Shape <start = 2, end = 3> (x)
    f = Cast <to = 1> (sh)
    t = Mul (f, three)
    i = Cast <to = 7> (t)
    one = Constant <value = int64[2] {{1, 4}}> ()
    last = Constant <value = int64[1] {{3}}> ()
    size = Concat <axis = 0> (one, i, last)
    h = Relu (x)
    y = Expand (h, size)
    zero = Constant <value = float {{0.0}}> ()
    step = Constant <value = float {{1.0}}> ()
    stop = Constant <value = float {{5.0}}> ()
    q = Range (zero, stop, step)
    r = Mul (q, step)
}}"""


@pytest.mark.parametrize("precision", NARROW)
def test_arithmetic_on_shapes_and_what_takes_no_narrow_type_keep_float32(precision):
    model = parse(SHAPES.format(side=1), {"three": np.array([2049], np.float32)})
    out, _, result = cast(model, precision)
    x = rnd(1, 4, 1, 3)
    y, r = run(emulate(out, NARROW[precision][0]), {"x": x})
    assert y.shape == (1, 4, 2049, 3), "2049 is neither a float16 nor a bfloat16"
    np.testing.assert_array_equal(r, np.arange(5))
    kept = {entry.subject: entry.reason for entry in result.skipped}
    assert kept["Mul 't'"] == "float arithmetic between integers"
    assert "does not take" in kept["Range 'q'"]


def test_random_operators_and_casts_state_the_type_that_their_readers_want():
    body = """(int64[N, 4] k, float[N, 4] x) => (float[N, 4] y) {
        n = RandomNormal <dtype = 1, shape = [1, 4], seed = 1.0> ()
        f = Cast <to = 1> (k)
        o = RandomUniformLike <dtype = 1, seed = 1.0> (k)
        a = Add (f, n)
        b = Add (a, o)
        y = Add (b, x)
    }"""
    out, _, _ = cast(parse(body, {}), "fp16")
    stated = [
        attribute.i for node in out.graph.node for attribute in node.attribute if attribute.name in ("to", "dtype")
    ]
    assert sorted(stated) == [TensorProto.FLOAT] + 4 * [TensorProto.FLOAT16], "the last Cast gives the output"


def test_a_weight_that_keeps_float32_for_one_reader_is_there_twice():
    body = """(float[N, 2, 4, 4] x) => (float[N, 2, 8, 8] y) {
        e = Mul (x, x)
        h = Resize <mode = "nearest"> (e, "", sc)
        y = Mul (h, k)
        k = Slice (sc, a, b)
    }""".replace(
        "        y = Mul (h, k)\n        k = Slice (sc, a, b)\n",
        "        k = Slice (sc, a, b)\n        y = Mul (h, k)\n",
    )
    weights = {"sc": np.array([1, 1, 2, 2], np.float32), "a": np.array([3]), "b": np.array([4])}
    model = parse(body, weights)
    out, _, _ = cast(model, "fp16")
    held = {tensor.name: tensor.data_type for tensor in out.graph.initializer}
    assert (held["sc"], held["sc.float16"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)
    x = rnd(1, 2, 4, 4)
    np.testing.assert_allclose(run(out, {"x": x})[0], run(model, {"x": x})[0], rtol=3e-3)


def casts(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """The input and output of each Cast of a model."""
    return [(node.input[0], node.output[0]) for node in all_nodes(model) if node.op_type == "Cast"]


def test_a_tensor_is_cast_once_whoever_reads_it():
    """Two nodes of the graph and one in each branch."""
    body = """(float[N, 6] x, bool c) => (float[N, 6] y) {
        a = Relu (x)
        b = Neg (x)
        s = If (c) <then_branch = yes () => (float[N, 6] t) { t = Abs (x) },
                    else_branch = no () => (float[N, 6] e) { e = Sin (x) }>
        y = Sum (a, b, s)
    }"""
    out, _, _ = cast(parse(body, {}), "fp16")
    assert [source for source, _ in casts(out)] == ["x", "y.float16"]


def test_a_cast_that_did_nothing_before_stays():
    body = "(float[N] x) => (float[N] y) { a = Relu (x)\n h = Cast <to = 1> (a)\n y = Neg (h) }"
    out, _, _ = cast(parse(body, {}), "fp16")
    assert [node.op_type for node in out.graph.node] == ["Cast", "Relu", "Cast", "Neg", "Cast"]


def test_what_a_branch_returns_has_the_type_of_the_other_branch():
    """Range takes no float16, so that one branch ends in float32."""
    body = """(float[5] x, bool c) => (float[5] y) {
        s = If (c) <
            then_branch = yes () => (float[5] t) {
                zero = Constant <value = float {0.0}> () step = Constant <value = float {1.0}> ()
                stop = Constant <value = float {5.0}> () t = Range (zero, stop, step)
            },
            else_branch = no () => (float[5] e) { e = Neg (x) }>
        y = Relu (s)
    }"""
    model = parse(body, {})
    out, _, _ = cast(model, "fp16")
    assert types_of(out)["s"] == TensorProto.FLOAT16
    for taken in (True, False):
        feeds = {"x": rnd(5), "c": np.array(taken)}
        np.testing.assert_allclose(run(out, feeds)[0], run(model, feeds)[0], rtol=2.0**-10)


def test_a_cast_that_a_branch_returns_has_the_type_of_the_other_branch():
    body = """(float[5] x, int64[5] k, bool c) => (float[5] y) {
        s = If (c) <then_branch = yes () => (float[5] t) { t = Cast <to = 1> (k) },
                    else_branch = no () => (float[5] e) { e = Neg (x) }>
        y = Relu (s)
    }"""
    out, _, _ = cast(parse(body, {}), "fp16")
    assert [source for source, _ in casts(out)] == ["y.float16", "k", "x"]


def test_a_fill_that_names_no_value_is_zero_in_the_type():
    body = "(float[N, 4] x) => (float[N, 4] y) { s = Shape (x)\n o = ConstantOfShape (s)\n y = Add (x, o) }"
    out, _, _ = cast(parse(body, {}), "fp16")
    (fill,) = [node for node in out.graph.node if node.op_type == "ConstantOfShape"]
    value = numpy_helper.to_array(fill.attribute[0].t)
    assert (value.dtype, value.tolist()) == (np.float16, [0.0])


KEPT = {
    "the ratio of Dropout": ("(float[N, 4] x) => (float[N, 4] y) { y = Dropout (x, k) }", np.float32(0.1)),
    "the region of Resize": (
        """(float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) {
            sizes = Constant <value = int64[4] {1, 1, 2, 2}> ()
            y = Resize <mode = "nearest", coordinate_transformation_mode = "tf_crop_and_resize"> (x, k, "", sizes)
        }""",
        np.array([0, 0, 0.1, 0.1, 1, 1, 0.9, 0.9], np.float32),
    ),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_no_data_passes_through_keeps_float32(kind):
    body, constant = KEPT[kind]
    out, _, _ = cast(parse(body, {"k": np.asarray(constant)}), "fp16")
    held = next(tensor for tensor in out.graph.initializer if tensor.name == "k")
    np.testing.assert_array_equal(numpy_helper.to_array(held), constant)
    assert held.data_type == TensorProto.FLOAT


@pytest.mark.parametrize("made", ["q = SequenceConstruct (x, x)", "q = Optional (x)"])
def test_sequences_and_optional_values_are_refused(made):
    reader = "SequenceLength" if "Sequence" in made else "OptionalHasElement"
    kind = "int64" if "Sequence" in made else "bool"
    model = parse(f"(float[N] x) => ({kind} y) {{ {made}\n y = {reader} (q) }}", {})
    with pytest.raises(ModelError, match=f"{made[4:].split()[0]} 'q' holds sequences or optional values"):
        CastPrecision("fp16")(import_graph(model))
