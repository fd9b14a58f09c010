from __future__ import annotations

import onnx.parser
import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions, ShapeRange, parse_shapes, resolve_profile


def model(inputs: str):
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]>\nmain ({inputs}) => (float[N] y) {{ y = Relu (x) }}'
    )


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("x:1x3x32x32", {"x": (1, 3, 32, 32)}),
        ("x:[1,3,32,32]", {"x": (1, 3, 32, 32)}),
        ("x:[1, 3],y:4x5", {"x": (1, 3), "y": (4, 5)}),
        (" x : 1x3 , y:[7]", {"x": (1, 3), "y": (7,)}),
        ("input:0:1x3", {"input:0": (1, 3)}),
        ("a/b.c:8", {"a/b.c": (8,)}),
    ],
)
def test_shapes_are_read_as_trtexec_and_as_polygraphy_write_them(text, shapes):
    assert parse_shapes(text) == shapes


@pytest.mark.parametrize(
    "text", ["", "1x3", "x:", "x:1x", "x:1*3", "x:-1x3", "x:0x3", "x:1x3 y:1", "x:1,x:2", f"x:{2**31}"]
)
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(InputError, match="shapes '"):
        parse_shapes(text)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ShapeOptions("x:4x3"), ShapeRange((4, 3), (4, 3), (4, 3))),
        (ShapeOptions(None, "x:1x3", "x:8x3", "x:64x3"), ShapeRange((1, 3), (8, 3), (64, 3))),
        (ShapeOptions(None, "x:1x3", None, "x:64x3"), ShapeRange((1, 3), (64, 3), (64, 3))),
        (ShapeOptions(None, None, "x:8x3", None), ShapeRange((8, 3), (8, 3), (8, 3))),
        (ShapeOptions("x:8x3", None, None, "x:64x3"), ShapeRange((8, 3), (8, 3), (64, 3))),
    ],
)
def test_what_is_not_given_is_taken_from_what_is(options, expected):
    assert resolve_profile(model("float[N, 3] x"), options) == {"x": expected}


def test_a_model_with_fixed_shapes_needs_none():
    assert resolve_profile(model("float[2, 3] x"), ShapeOptions())["x"] == ShapeRange((2, 3), (2, 3), (2, 3))


def test_weights_among_the_inputs_are_not_asked_for():
    stated = model("float[2, 3] x, float[K] w")
    stated.graph.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [0.0]))
    assert list(resolve_profile(stated, ShapeOptions())) == ["x"]


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        ("float[N, 3] x", ShapeOptions(), r"'x' has no fixed size on axis 0 \(N\); pass --shapes x:1x3"),
        ("float[] x", ShapeOptions(), "'x' has no shape in the model"),
        ("float[N, 3] x", ShapeOptions("z:1x3"), "has no input 'z'; it takes x"),
        ("float[N, 3] x", ShapeOptions("x:1x4"), r"is \(N, 3\) in the model, \(1, 4\) was given"),
        ("float[N, 3] x", ShapeOptions("x:1x3x3"), r"\(1, 3, 3\) was given"),
        ("float[N, 3] x", ShapeOptions(None, "x:9x3", "x:2x3"), "do not grow from the smallest"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_input(inputs, options, words):
    with pytest.raises(InputError, match=words):
        resolve_profile(model(inputs), options)
