"""Every fold in every type and opset: the right nodes changed, the others byte-equal, the numbers, the checker, idle twice.

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
import pytest
from onnx.reference.op_run import OpRun

from vsfix.graph_passes.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.model_file import export_model, import_graph

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
    """The same model with everything in float64."""
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


@pytest.mark.parametrize(("row", "kind", "opset"), CELLS)
def test_the_layer_in_front_takes_the_batch_norm(row, kind, opset):
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


def image(text: str, out="y", shape="N, 4, 5, 5"):
    return (
        f"(FLOAT[{shape}] x) => (FLOAT[{out}]) {{ {text} }}"
        if "[" in out
        else f"(FLOAT[{shape}] x) => ({out}) {{ {text} }}"
    )


NORM = "h = BatchNormalization (x, g, b, m, v)\n "
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
    "a Gemm behind a Flatten of positions": (
        NORM + "f = Flatten (h)\n y = Gemm (f, w, c)", {"w": draw(24, 6), "c": draw(6)}, "N, 4, 3, 2", ["Flatten", "Gemm"],
    ),
    "a MatMul behind a Transpose": (
        NORM + "f = Transpose <perm = [0, 2, 1]> (h)\n y = MatMul (f, w)", {"w": draw(4, 6)}, "N, 4, S", ["Transpose", "MatMul", "Add"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["float16", "float", "double"])
@pytest.mark.parametrize("row", FORWARD)
def test_the_layer_behind_takes_the_batch_norm(row, kind):
    text, weights, shape, left = FORWARD[row]
    model = build(image(text, shape=shape), weights | statistics(4), kind)
    _, result = prove(model, left, kind)
    assert "behind it" in result.changed[0].action


PADDED = ("<pads = [1, 1]>", '<auto_pad = "SAME_LOWER">')


@pytest.mark.parametrize("attributes", PADDED)
def test_a_padded_convolution_behind_is_refused_unless_the_shift_is_zero(attributes):
    body = image(NORM + f"y = Conv {attributes} (h, w)", shape="N, 4, 7")
    weights = {"w": draw(6, 4, 3)} | statistics(4)
    _, result = prove(build(body, weights), [BN, "Conv"])
    assert "pads with zeros" in result.kept[0].reason
    prove(build(body, weights | {"b": np.zeros(4), "m": np.zeros(4)}), ["Conv"])


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


def one(text: str, outputs: str = "y") -> str:
    return f"(FLOAT[N, 4, 7] x) => ({outputs}) {{ {text} }}"


TAIL = "\n y = BatchNormalization (h, g, b, m, v)"
REFUSED = {
    "is read 2 times": (one("h = Conv (x, w)\n z = Relu (h)" + TAIL, "y, z"), {}),
    "is an output of the graph": (one("h = Conv (x, w)" + TAIL, "y, h"), {}),
    "comes from Add": (one("p = Conv (x, w)\n q = Conv (x, w)\n h = Add (p, q)" + TAIL), {}),
    "of the Concat in front": (
        one("p = Conv (x, w)\n h = Concat <axis = 1> (p, p)" + TAIL),
        {name: np.tile(values, 2) for name, values in statistics().items()},
    ),
    "weight of Conv is computed": (one("q = Abs (w)\n h = Conv (x, q)" + TAIL), {}),
    "their own statistics": (
        one("p = Conv (x, w)\n h = Flatten (p)" + TAIL),
        {name: np.abs(draw(30)) + 0.1 for name in "gbmv"},
    ),
    "mixes the channels": (one("h = MatMul (x, w)" + TAIL), {"w": draw(7, 4)} | statistics(4)),
    "stands on the left": (one("h = MatMul (w, x)" + TAIL), {"w": draw(6, 4)}),
    "channel 2 would overflow": (
        one("h = Conv (x, w)" + TAIL),
        {"v": np.r_[1, 1, 0, 1, 1, 1.0], "g": np.r_[1, 1, 3e38, 1, 1, 1]},
    ),
    "channel 1 would be NaN": (one("h = Conv (x, w)" + TAIL), {"v": np.r_[1, -1, 1, 1, 1, 1.0]}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_refusal_has_its_reason_and_changes_no_byte(reason):
    body, weights = REFUSED[reason]
    model = build(body, {"w": draw(6, 4, 3)} | statistics() | weights)
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString()
    with np.errstate(all="ignore"):
        result = FoldBatchNorm()(graph)
    assert not result.modified
    assert reason in result.kept[0].reason
    assert export_model(graph, model).SerializeToString() == before


@pytest.mark.parametrize("opset", [9, 15])
def test_a_batch_norm_in_training_form_is_never_folded(opset):
    training = "<training_mode = 1> " if opset == 15 else ""
    names = "y, o1, o2" if opset == 15 else "y, o1, o2, o3, o4"
    model = build(
        one(f"h = Conv (x, w)\n {names} = BatchNormalization {training}(h, g, b, m, v)"),
        {"w": draw(6, 4, 3)} | statistics(),
        opset=opset,
    )
    graph = import_graph(model)
    result = FoldBatchNorm()(graph)
    assert (result.modified, "training form" in result.kept[0].reason) == (False, True)


def test_a_weight_of_two_layers_is_copied():
    model = build(one("h = Conv (x, w)\n z = Conv (x, w)" + TAIL, "y, z"), {"w": draw(6, 4, 3)} | statistics())
    prove(model, ["Conv", "Conv"])


@pytest.mark.parametrize("own", ["", ", d"])
def test_an_add_behind_a_convolution_is_its_bias(own):
    weights = {"w": draw(6, 4, 3), "c": draw(6, 1)} | ({"d": draw(6)} if own else {}) | statistics()
    prove(build(one(f"p = Conv (x, w{own})\n h = Add (c, p)" + TAIL), weights), ["Conv", "Add"])


def test_a_reshape_that_mixes_the_batch_into_the_channels_is_refused():
    text = "p = Conv (x, w)\n h = Reshape (p, s)" + TAIL
    model = build(one(text), {"w": draw(6, 4, 3), "s": np.array([-1, 5])} | statistics(5))
    _, result = prove(model, ["Conv", "Reshape", BN])
    assert "mixes the channels" in result.kept[0].reason


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


def test_a_batch_norm_in_a_branch_behind_a_convolution_outside_is_refused():
    body = """(FLOAT[N, 4, 7] x, bool k) => (FLOAT[N, 6, 5] y) {
        a = Conv (x, w)
        y = If (k) <then_branch = t () => (FLOAT[N, 6, 5] p) { p = BatchNormalization (a, g, b, m, v) },
                    else_branch = e () => (FLOAT[N, 6, 5] q) { q = Conv (x, w) }> }"""
    _, result = prove(build(body, {"w": draw(6, 4, 3)} | statistics()), ["Conv", "If"], k=np.array(True))
    assert "outside of the body" in result.kept[0].reason
