"""Every fold in every type and opset; see `fold_proof` for what is proven."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnx.numpy_helper
import pytest

from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm

from .fold_proof import (
    BN,
    IN,
    NORM,
    OUT,
    ROUNDING,
    TAIL,
    TYPES,
    build,
    draw,
    error,
    evaluate,
    image,
    one,
    prove,
    statistics,
)

BIASES = {"no bias": "", "bias": ", c", "empty bias": ', ""'}
DIMS = {1: "7", 2: "5, 4", 3: "3, 4, 3"}


def convolution(op: str, dims: int, groups: int, bias: str):
    kernel = (2,) * dims
    shape = (OUT, IN // groups, *kernel) if op == "Conv" else (IN, OUT // groups, *kernel)
    pads = ", ".join("1" for _ in range(2 * dims))
    body = f"""(FLOAT[N, {IN}, {DIMS[dims]}] x) => (FLOAT[{", ".join("NPQRS"[: dims + 2])}] y) {{
        h = {op} <group: int = {groups}, pads: ints = [{pads}]> (x, w{BIASES[bias]})
        y = BatchNormalization (h, g, b, m, v) }}"""
    return body, {"w": draw(*shape)} | ({"c": draw(OUT)} if bias == "bias" else {}), [op]


def matrix(call: str, weights: dict[str, np.ndarray], left: list[str], source="FLOAT[3, 4] x"):
    body = f"({source}) => (FLOAT[N, {OUT}] y) {{ {call}\n y = BatchNormalization (h, g, b, m, v) }}"
    return body, weights, left


W, GEMM = {"w": draw(IN, OUT)}, "h = Gemm <alpha = 0.5, beta = 3.0> (x, w, c)"
ROWS = {
    f"{op} {dims}d, {groups} groups, {bias}": convolution(op, dims, groups, bias)
    for op, dims, groups, bias in itertools.product(("Conv", "ConvTranspose"), DIMS, (1, 2), BIASES)
} | {
    "Gemm, no bias": matrix("h = Gemm (x, w)", W, ["Gemm"]),
    "Gemm, transB": matrix("h = Gemm <transB = 1> (x, w, c)", {"w": draw(OUT, IN), "c": draw(OUT)}, ["Gemm"]),
    "Gemm, transA": matrix("h = Gemm <transA = 1> (x, w, c)", W | {"c": draw(OUT)}, ["Gemm"], "FLOAT[4, 3] x"),
    "MatMul": matrix("h = MatMul (x, w)", W, ["MatMul", "Add"]),
    "MatMul and Add": matrix("p = MatMul (x, w)\n h = Add (p, c)", W | {"c": draw(OUT)}, ["MatMul", "Add"]),
    "Add and MatMul": matrix("p = MatMul (x, w)\n h = Add (c, p)", W | {"c": draw(1, OUT)}, ["MatMul", "Add"]),
    **{
        f"Gemm, C of {shape}": matrix(GEMM, W | {"c": draw(*shape) if shape else np.array(0.7)}, ["Gemm"])
        for shape in ((), (1,), (OUT,), (1, OUT), (3, 1), (3, OUT))
    },
}
CELLS = [
    (row, kind, opset)
    for row, kind, opset in itertools.product(ROWS, ("float16", "float", "double"), (7, 9, 13, 15, 17, 21))
    if not (row == "Gemm, no bias" and opset < 11)
]
CELLS += [(row, "bfloat16", 22) for row in ROWS]


@pytest.mark.long
@pytest.mark.parametrize(("row", "kind", "opset"), CELLS)
def test_the_upstream_layer_takes_the_batch_norm(row, kind, opset):
    body, weights, left = ROWS[row]
    after, result = prove(build(body, weights | statistics(), kind, opset), left, kind)
    assert [change.subject for change in result.changed] == ["y"]
    assert {t.data_type for t in after.graph.initializer} == {
        onnx.helper.np_dtype_to_tensor_dtype(np.dtype(TYPES[kind]))
    }


def test_the_float64_fold_is_rounded_once():
    body, weights, _ = ROWS["Conv 2d, 2 groups, bias"]
    model = build(body, weights | statistics(), "float16")
    after, _ = prove(model, ["Conv"], "float16")
    stored = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    scale = stored["g"] / np.sqrt(stored["v"] + float(np.float32(1e-5)))
    found = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    np.testing.assert_array_equal(found["w"], (stored["w"] * scale[:, None, None, None]).astype(np.float16))
    np.testing.assert_array_equal(found["c"], (scale * (stored["c"] - stored["m"]) + stored["b"]).astype(np.float16))


PLANTED = {
    "variance and epsilon not rooted": ("Conv 2d, 2 groups, bias", lambda s, g: s["w"] / g * g**2),
    "the wrong axis": ("Gemm, C of (6,)", lambda s, g: s["w"] / g * g[:4, None]),
    "groups mixed": ("ConvTranspose 2d, 2 groups, bias", lambda s, g: s["w"][[2, 3, 0, 1]]),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_seen(mistake):
    row, spoil = PLANTED[mistake]
    body, weights, left = ROWS[row]
    model = build(body, weights | statistics())
    after, _ = prove(model, left)
    stats = statistics()
    g = stats["g"] / np.sqrt(stats["v"] + 1e-5)
    g = g[:, None, None, None] if row.startswith("Conv ") else g
    tensor = next(t for t in after.graph.initializer if t.name == "w")
    spoilt = spoil({"w": onnx.numpy_helper.to_array(tensor)}, g).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(spoilt, "w"))
    assert error(evaluate(after)[0], evaluate(model)[0]) > 1000 * ROUNDING["float"]


@pytest.mark.parametrize("wide", [("m", "v"), ("g", "b", "m", "v")])
def test_half_data_with_float32_statistics_folds_and_stays_a_valid_model(wide):
    body, weights, _ = ROWS["Conv 2d, 1 groups, bias"]
    model = build(body, weights | statistics(), "float16", 15, dict.fromkeys(wide, "float"))
    after, _ = prove(model, ["Conv"], "float16")
    assert {t.data_type for t in after.graph.initializer} == {onnx.TensorProto.FLOAT16}


FORWARD = {
    "an unpadded Conv": (NORM + "y = Conv (h, w, c)", {"w": draw(6, 4, 3, 3), "c": draw(6)}, "N, 4, 5, 5", ["Conv"]),
    "a grouped Conv": (NORM + "y = Conv <group = 2> (h, w)", {"w": draw(6, 2, 3, 3)}, "N, 4, 5, 5", ["Conv"]),
    "a strided Conv 1d": (NORM + "y = Conv <strides = [2]> (h, w)", {"w": draw(6, 4, 3)}, "N, 4, 7", ["Conv"]),
    "a Conv without padding by name": (NORM + 'y = Conv <auto_pad = "VALID"> (h, w)', {"w": draw(6, 4, 3)}, "N, 4, 7", ["Conv"]),
    "a Conv of a point, SAME": (NORM + 'y = Conv <auto_pad = "SAME_UPPER"> (h, w)', {"w": draw(6, 4, 1)}, "N, 4, 7", ["Conv"]),
    "a ConvTranspose of a point": (NORM + "y = ConvTranspose <group = 2> (h, w)", {"w": draw(4, 3, 1)}, "N, 4, 7", ["ConvTranspose"]),
    "a Gemm": (NORM + "y = Gemm <alpha = 0.5, beta = 2.0> (h, w, c)", {"w": draw(4, 6), "c": draw(1)}, "N, 4", ["Gemm"]),
    "a MatMul": (NORM + "y = MatMul (h, w)", {"w": draw(4, 6)}, "N, 4", ["MatMul", "Add"]),
    "a MatMul with its Add": (NORM + "p = MatMul (h, w)\n y = Add (p, c)", {"w": draw(4, 6), "c": draw(6)}, "N, 4", ["MatMul", "Add"]),
    "a Gemm downstream of a Flatten of positions": (
        NORM + "f = Flatten (h)\n y = Gemm (f, w, c)", {"w": draw(24, 6), "c": draw(6)}, "N, 4, 3, 2", ["Flatten", "Gemm"],
    ),
    "a MatMul downstream of a Transpose": (
        NORM + "f = Transpose <perm = [0, 2, 1]> (h)\n y = MatMul (f, w)", {"w": draw(4, 6)}, "N, 4, S", ["Transpose", "MatMul", "Add"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["float16", "float", "double"])
@pytest.mark.parametrize("row", FORWARD)
def test_the_downstream_layer_takes_the_batch_norm(row, kind):
    text, weights, shape, left = FORWARD[row]
    model = build(image(text, shape=shape), weights | statistics(4), kind)
    _, result = prove(model, left, kind)
    assert "the downstream" in result.changed[0].action


VIEWS = {
    "Flatten": ("t = Conv (x, w)\n h = Flatten (t)", {}, (4, 3), ["Conv", "Flatten"], 18),
    "Reshape": ("t = Conv (x, w)\n h = Reshape (t, s)", {"s": np.array([-1, 6])}, (4, 3), ["Conv", "Reshape"], 18),
    "Reshape of unknown length": ("t = Conv (x, w)\n h = Reshape (t, s)", {"s": np.array([0, 6, -1])}, (4, "L"), ["Conv", "Reshape"], 18),
    "Squeeze": ("t = Conv (x, w)\n h = Squeeze (t, s)", {"s": np.array([2])}, (4, 3), ["Conv", "Squeeze"], 18),
    "Squeeze of opset 11": ("t = Conv (x, w)\n h = Squeeze <axes = [-1]> (t)", {}, (4, 3), ["Conv", "Squeeze"], 11),
    "Unsqueeze": ("t = Conv (x, w)\n h = Unsqueeze (t, s)", {"s": np.array([-1])}, (4, 5), ["Conv", "Unsqueeze"], 18),
    "Transpose": ("t = MatMul (x, w)\n h = Transpose <perm = [0, 2, 1]> (t)", {"w": draw(4, 6)}, ("S", 4), ["MatMul", "Add", "Transpose"], 18),
    "a shuffle of channels": (
        "t = Conv (x, w)\n a = Reshape (t, p)\n d = Transpose <perm = [0, 2, 1, 3]> (a)\n h = Reshape (d, q)",
        {"p": np.array([0, 2, 3, -1]), "q": np.array([0, 6, -1])}, (4, "L"), ["Conv", "Reshape", "Transpose", "Reshape"], 18,
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", VIEWS)
def test_the_channels_are_followed_through(row):
    text, weights, (first, second), left, opset = VIEWS[row]
    body = f"(FLOAT[N, {first}, {second}] x) => (y) {{ {text}\n y = BatchNormalization (h, g, b, m, v) }}"
    prove(build(body, {"w": draw(6, 4, 3)} | weights | statistics(), "float", opset), left)


def test_a_weight_of_two_layers_is_copied():
    model = build(one("h = Conv (x, w)\n z = Conv (x, w)" + TAIL, "y, z"), {"w": draw(6, 4, 3)} | statistics())
    prove(model, ["Conv", "Conv"])


def test_a_bias_of_zero_is_no_reason_for_an_add():
    still = {"b": np.zeros(4), "m": np.zeros(4), "w": draw(4, 4)}
    prove(build(image(NORM + "y = MatMul (h, w)", shape="N, 4"), statistics(4) | still), ["MatMul"])
    prove(build(image("h = MatMul (x, w)" + TAIL, shape="N, 4"), statistics(4) | still), ["MatMul"])


@pytest.mark.parametrize("own", ["", ", d"])
def test_an_add_downstream_of_a_convolution_is_its_bias(own):
    weights = {"w": draw(6, 4, 3), "c": draw(6, 1)} | ({"d": draw(6)} if own else {}) | statistics()
    prove(build(one(f"p = Conv (x, w{own})\n h = Add (c, p)" + TAIL), weights), ["Conv", "Add"])


def test_layers_without_names_and_two_batch_norms_in_a_row_fold():
    prove(
        build(
            one("p = Conv (x, w)\n h = BatchNormalization (p, g, b, m, v)" + TAIL), {"w": draw(6, 4, 3)} | statistics()
        ),
        ["Conv"],
    )


def test_every_layer_has_its_batch_norm_even_where_they_share_all_weights():
    text = "p = Conv (x, w, c)\n h = BatchNormalization (p, g, b, m, v)\n q = Relu (h)\n r = Conv (q, w, c)\n y = BatchNormalization (r, g, b, m, v)"
    prove(build(one(text), {"w": draw(4, 4, 3), "c": draw(4)} | statistics(4)), ["Conv", "Relu", "Conv"])


def test_what_stays_can_be_written_as_mul_and_add():
    model = build(one("p = Relu (x)\n y = BatchNormalization (p, g, b, m, v)"), statistics(4))
    prove(model, ["Relu", BN])
    _, result = prove(model, ["Relu", "Mul", "Add"], fold=FoldBatchNorm(residual="affine"))
    assert "written as Mul and Add, since its input comes from Relu" in result.changed[0].action


IF = """(FLOAT[N, 4, 7] x, bool k) => (FLOAT[N, 6, 5] y) {
    y = If (k) <then_branch = t () => (FLOAT[N, 6, 5] p) { a = Conv (x, w)\n p = BatchNormalization (a, g, b, m, v) },
                else_branch = e () => (FLOAT[N, 6, 5] q) { q = Conv (x, w) }> }"""


@pytest.mark.parametrize("taken", [True, False])
def test_a_batch_norm_in_a_branch_folds_and_the_weight_outside_is_copied(taken):
    after, result = prove(build(IF, {"w": draw(6, 4, 3)} | statistics()), ["If"], k=np.array(taken))
    branches = [[node.op_type for node in attribute.g.node] for attribute in after.graph.node[0].attribute]
    assert branches == [["Conv"], ["Conv"]]
    assert [change.subject for change in result.changed] == ["p"]


def test_a_batch_norm_in_a_loop_folds():
    body = """(FLOAT[N, 4, 7] x) => (FLOAT[N, 4, 7] y) {
        y = Loop (n, "", x) <body = r (int64 i, bool k, FLOAT[N, 4, 7] s) => (bool j, FLOAT[N, 4, 7] t) {
            j = Identity (k)\n a = Conv <pads = [1, 1]> (s, w)\n t = BatchNormalization (a, g, b, m, v) }> }"""
    after, _ = prove(build(body, {"w": draw(4, 4, 3) / 4, "n": np.array(2)} | statistics(4)), ["Loop"])
    assert [node.op_type for node in after.graph.node[0].attribute[0].g.node] == ["Identity", "Conv"]
