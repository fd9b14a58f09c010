"""The cast: the right nodes changed, the others not, the same numbers, the full checker, and a second run idle.

The truth is the original network in float64, evaluated by onnx's reference evaluator: `widen` makes that model without
anything of the pass. The bounds are those of the types: half a unit in the last place at each stored number.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnx.reference
import onnx.shape_inference
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from vsfix.graph_passes.constant_rounding import MULTIPLY_WEIGHTS
from vsfix.graph_passes.errors import CheckFailedError, InputError, ModelError
from vsfix.graph_passes.float_cast import FloatCast
from vsfix.graph_passes.model_file import export_model, import_graph
from vsfix.graph_passes.opset import lowest_opset, raise_opset
from vsfix.graph_passes.precision import PRECISIONS, CastPrecision, count_float_types
from vsfix.graph_passes.rounded_activations import emulate

OPSETS = (13, 15, 17, 18, 21, 22)
NARROW = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}
# A network of this depth loses a few bits more than one rounding does, 71 and 53 dB.
BOUND_DB = {"fp16": 53.0, "bf16": 34.0}


def rnd(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(sum(shape)).normal(size=shape)).astype(np.float32)


def bn(channels: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(channels)
    uniform = rng.uniform(0.5, 2, (2, channels)).astype(np.float32)
    return {"g": uniform[0], "be": rnd(channels), "m": rnd(channels, scale=0.3), "v": uniform[1]}


NETWORKS = {
    "convolutional": (
        """(float[N, 4, 8, 8] x) => (float[N, 5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            r = Relu (a)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
            n = BatchNormalization (p, g, be, m, v)
            q = AveragePool <kernel_shape = [2, 2]> (n)
            c = Concat <axis = 1> (q, q)
            s = GlobalAveragePool (c)
            f = Flatten (s)
            y = Gemm <transB = 1> (f, u, d)
        }""",
        {"w": rnd(6, 4, 3, 3, scale=0.3), "b": rnd(6), "u": rnd(5, 12), "d": rnd(5), **bn(6)},
        {"x": rnd(3, 4, 8, 8)},
    ),
    "perceptron, two inputs, two outputs, one of them inside": (
        """(float[N, 6] x, float[N, 6] z) => (float[N, 6] h, float[N, 4] y) {
            t = Add (x, z)
            k = MatMul (t, w)
            h = BatchNormalization (k, g, be, m, v)
            r = Relu (h)
            y = Gemm (r, u)
        }""",
        {"w": rnd(6, 6), "u": rnd(6, 4), **bn(6)},
        {"x": rnd(5, 6), "z": rnd(6, 5).T.copy()},
    ),
    "resized by constant scales": (
        """(float[N, 4, 4, 4] x) => (float[N, 6, 8, 8] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            i = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (a, "", sc)
            y = Relu (i)
        }""",
        {"w": rnd(6, 4, 3, 3), "sc": np.array([1, 1, 2, 2], np.float32)},
        {"x": rnd(2, 4, 4, 4)},
    ),
    "branches": (
        """(float[N, 6] x, bool c) => (float[N, 4] y) {
            h = Relu (x)
            s = If (c) <
                then_branch = yes () => (float[N, 4] t) { t = MatMul (h, w) },
                else_branch = no () => (float[N, 4] e) { k = MatMul (h, w) e = Neg (k) }>
            y = Add (s, b)
        }""",
        {"w": rnd(6, 4), "b": rnd(4)},
        {"x": rnd(5, 6), "c": np.array(False)},
    ),
    "rounds of a loop": (
        """(float[N, 6] x, int64 count) => (float[N, 6] y) {
            go = Constant <value = bool {1}> ()
            y = Loop (count, go, x) <body = round (int64 i, bool on, float[N, 6] old) => (bool more, float[N, 6] new) {
                more = Identity (on)
                k = MatMul (old, w)
                new = Add (k, b)
            }>
        }""",
        {"w": rnd(6, 6, scale=0.4), "b": rnd(6)},
        {"x": rnd(5, 6), "count": np.array(3, np.int64)},
    ),
    "integers in, a filled tensor, a constant node": (
        """(int64[N, 3] ids) => (float[N, 3, 4] y, int64[N, 3] same) {
            e = Gather (w, ids)
            sh = Shape (e)
            o = ConstantOfShape <value = float[1] {0.5}> (sh)
            k = Constant <value = float[4] {1.0, 2.5, -3.0, 0.125}> ()
            a = Mul (e, k)
            b = Add (a, o)
            f = Cast <to = 1> (ids)
            ax = Constant <value = int64[1] {2}> ()
            f3 = Unsqueeze (f, ax)
            y = Add (b, f3)
            same = Add (ids, ids)
        }""",
        {"w": rnd(9, 4)},
        {"ids": np.array([[1, 2, 8], [0, 5, 3]])},
    ),
}


def build(name: str, opset: int) -> onnx.ModelProto:
    body, weights, _ = NETWORKS[name]
    return parse(body, weights, opset)


def parse(body: str, weights: dict[str, np.ndarray], opset: int = 18) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\nmain {body}')
    model.graph.initializer.extend(numpy_helper.from_array(values, key) for key, values in weights.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def cast(model: onnx.ModelProto, precision: str) -> tuple[onnx.ModelProto, CastPrecision, tuple]:
    graph = import_graph(model)
    opset, reason = lowest_opset(graph, PRECISIONS[precision])
    if reason:
        model = raise_opset(model, opset, PRECISIONS[precision], reason)
        graph = import_graph(model)
    run = CastPrecision(precision)
    result = run(graph)
    out = export_model(graph, model)
    onnx.checker.check_model(out, full_check=True)
    return out, run, result


def snr_db(truth: np.ndarray, found: np.ndarray) -> float:
    truth, noise = truth.astype(np.float64), found.astype(np.float64) - truth.astype(np.float64)
    return float(10 * np.log10((truth**2).sum() / max((noise**2).sum(), 1e-300)))


def widen(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a float32 model in float64; BatchNormalization written out, for the evaluator's differs by opset."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for graph in graphs(wide.graph):
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and tensor.name != "sc":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.DOUBLE
                if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                    attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float64)))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in wide.graph.initializer}
    nodes = list(wide.graph.node)
    del wide.graph.node[:]
    for node in nodes:
        if node.op_type != "BatchNormalization":
            wide.graph.node.append(node)
            continue
        g, be, m, v = (values[name] for name in node.input[1:])
        rank = (-1, 1, 1) if any(n.op_type == "Conv" for n in nodes) else (-1,)
        gain = g / np.sqrt(v + np.float64(np.float32(1e-5)))
        for key, array in (("gain", gain), ("shift", be - gain * m)):
            wide.graph.initializer.append(numpy_helper.from_array(array.reshape(rank), f"{node.output[0]}.{key}"))
        out = node.output[0]
        wide.graph.node.append(onnx.helper.make_node("Mul", [node.input[0], f"{out}.gain"], [f"{out}.scaled"]))
        wide.graph.node.append(onnx.helper.make_node("Add", [f"{out}.scaled", f"{out}.shift"], [out]))
    doubles = {key: value.astype(np.float64) if value.dtype == np.float32 else value for key, value in feeds.items()}
    return onnx.reference.ReferenceEvaluator(wide).run(None, doubles)


def graphs(graph: onnx.GraphProto):
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def all_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for graph in graphs(model.graph) for node in graph.node]


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The element types that onnx's own inference finds, in strict mode."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    types: dict[str, int] = {}
    for graph in graphs(inferred.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            types[value.name] = value.type.tensor_type.elem_type
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return types


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_cast_graph_computes_the_same_within_the_rounding_of_its_type(name, precision, opset):
    model, feeds = build(name, opset), NETWORKS[name][2]
    out, _, result = cast(model, precision)
    assert result.modified
    for truth, found in zip(widen(model, feeds), run(emulate(out, NARROW[precision][0]), feeds), strict=True):
        if truth.dtype.kind == "f":
            assert found.dtype == np.float32
            assert snr_db(truth, found) > BOUND_DB[precision]
        else:
            np.testing.assert_array_equal(truth, found)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", NARROW)
def test_what_multiplies_weights_does_so_in_the_type_and_inputs_and_outputs_keep_theirs(name, precision):
    model = build(name, 18)
    out, _, _ = cast(model, precision)
    types, code = types_of(out), NARROW[precision][0]
    multiplying = [node for node in all_nodes(out) if node.op_type in MULTIPLY_WEIGHTS]
    assert all(types[tensor] == code for node in multiplying for tensor in (*node.input, *node.output) if tensor)
    for side in ("input", "output"):
        kept = [(value.name, value.type.tensor_type.elem_type) for value in getattr(model.graph, side)]
        assert [(v.name, v.type.tensor_type.elem_type) for v in getattr(out.graph, side)] == kept


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_second_run_changes_nothing(name, precision):
    out, _, _ = cast(build(name, 18), precision)
    graph = import_graph(out)
    assert not CastPrecision(precision)(graph).modified
    assert export_model(graph, out).SerializeToString() == out.SerializeToString()


@pytest.mark.parametrize("name", NETWORKS)
def test_operators_attributes_and_integers_stay_as_they_were(name):
    """Only Casts come, and only what states a float type or holds floats changes."""
    model = build(name, 18)
    out, _, _ = cast(model, "fp16")
    own = {"Cast", "ConstantOfShape", "Constant", "BatchNormalization", "If", "Loop"}
    described = [
        [(node.op_type, node.name, [a.SerializeToString() for a in node.attribute]) for node in all_nodes(held)]
        for held in (model, out)
    ]
    before, after = ([entry for entry in entries if entry[0] not in own] for entries in described)
    assert before == after
    integers = [{t.name: t.SerializeToString() for t in m.graph.initializer if t.data_type == 7} for m in (model, out)]
    assert integers[0] == integers[1]


def test_a_graph_that_still_computes_in_another_type_is_an_error(monkeypatch):
    monkeypatch.setattr(FloatCast, "run", lambda self: None)
    with pytest.raises(CheckFailedError, match="computes in float32, not in float16"):
        CastPrecision("fp16")(import_graph(build("branches", 18)))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_float32_graph_cast_to_float32_is_left_to_the_byte(name):
    model = build(name, 18)
    untouched = export_model(import_graph(model), model).SerializeToString()
    graph = import_graph(model)
    assert not CastPrecision("fp32")(graph).modified
    assert export_model(graph, model).SerializeToString() == untouched


@pytest.mark.parametrize("precision", NARROW)
def test_each_weight_is_rounded_once_to_nearest_and_keeps_its_name(precision):
    model = build("convolutional", 18)
    out, run_, _ = cast(model, precision)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in out.graph.initializer}
    for name in ("w", "b", "u", "d"):
        expected = NETWORKS["convolutional"][1][name].astype(NARROW[precision][1])
        assert found[name].tobytes() == expected.tobytes()
    assert run_.loss.tensors == 6, "four weights, gain and shift of the BatchNorm"


@pytest.mark.parametrize("precision", NARROW)
def test_a_batch_norm_that_is_left_holds_its_gain_and_shift_folded_in_float64(precision):
    model = build("convolutional", 18)
    out, _, result = cast(model, precision)
    node = next(node for node in out.graph.node if node.op_type == "BatchNormalization")
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in out.graph.initializer}
    gain, shift, mean, variance = (held[name].astype(np.float64) for name in node.input[1:])
    w = {key: value.astype(np.longdouble) for key, value in NETWORKS["convolutional"][1].items()}
    exact = w["g"] / np.sqrt(w["v"] + np.longdouble(np.float32(1e-5)))
    digits = {"fp16": 2.0**-11, "bf16": 2.0**-8}[precision]
    np.testing.assert_allclose(gain, exact.astype(np.float64), rtol=digits * 1.0001)
    np.testing.assert_allclose(shift, (w["be"] - exact * w["m"]).astype(np.float64), rtol=digits * 1.0001)
    assert not mean.any()
    assert (variance == 1).all()
    assert [attribute.f for attribute in node.attribute if attribute.name == "epsilon"] == [0.0]
    assert any(change.subject == "n" for change in result.changed)


@pytest.mark.parametrize("opset", [13, 15, 21])
def test_bfloat16_convolutions_raise_the_opset_to_22_and_float16_does_not(opset):
    assert {entry.version for entry in cast(build("convolutional", opset), "bf16")[0].opset_import} == {22}
    assert {entry.version for entry in cast(build("convolutional", opset), "fp16")[0].opset_import} == {opset}


def test_an_operator_that_no_conversion_brings_to_the_type_is_named():
    graph = import_graph(build("convolutional", 18))
    with pytest.raises(ModelError, match="Conv 'a' does not take bfloat16 at opset 18"):
        CastPrecision("bf16")(graph)


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
    kept = {entry.subject: entry.reason for entry in result.kept}
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


def test_a_half_model_is_brought_back_to_float32():
    half, _, _ = cast(build("convolutional", 18), "fp16")
    back, _, _ = cast(half, "fp32")
    assert count_float_types(import_graph(back)).keys() == {"float32"}
    assert {tensor.data_type for tensor in back.graph.initializer} == {TensorProto.FLOAT}
    assert all(node.op_type != "Cast" for node in back.graph.node if node.output[0] not in ("y",))


def test_another_precision_is_refused():
    with pytest.raises(InputError, match="int8"):
        CastPrecision("int8")


BN = "(float[N, 3, 2, 2] x) => (float[N, 3, 2, 2] y) { h = Relu (x)\n y = BatchNormalization (h, g, be, m, v) }"
CONV = "(float[N, 2, 4, 4] x) => (float[N, 3, 2, 2] y) { y = Conv (x, w) }"
ONES = {key: np.ones(3, np.float32) for key in ("g", "be", "m", "v")}


def at(values: np.ndarray, index: tuple, value: float) -> np.ndarray:
    changed = values.copy()
    changed[index] = value
    return changed


REFUSED = {
    "gain": (BN, {**ONES, "g": at(ONES["g"], (1,), 7e2), "v": at(ONES["v"], (1,), 1e-7)}, "'y', channel 1"),
    "shift": (BN, {**ONES, "m": at(ONES["m"], (2,), 7e4)}, "shift of BatchNorm 'y', channel 2"),
    "lost gain": (BN, {**ONES, "g": at(ONES["g"], (0,), 1e-6)}, "gain of BatchNorm 'y', channel 0"),
    "weight past the range": (CONV, {"w": at(rnd(3, 2, 3, 3), (2, 0, 1, 1), 65520)}, "'w', channel 2: 6.552e"),
    "NaN": (CONV, {"w": at(rnd(3, 2, 3, 3), (1, 0, 0, 0), np.nan)}, "'w', channel 1: nan is not finite"),
    "infinity": (CONV, {"w": at(rnd(3, 2, 3, 3), (0, 0, 0, 0), -np.inf)}, "'w', channel 0: -inf is not finite"),
    "subnormal channel": (
        CONV,
        {"w": at(rnd(3, 2, 3, 3), (1,), 5e-5)},
        "'w', channel 1: no value is larger than 5e-05",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_float16_cannot_hold_is_refused_with_tensor_and_channel(kind):
    body, weights, said = REFUSED[kind]
    with pytest.raises(CheckFailedError) as caught:
        CastPrecision("fp16")(import_graph(parse(body, weights)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_largest_float16_and_a_dead_channel_are_no_reason_to_refuse():
    weights = at(at(rnd(3, 2, 3, 3), (2, 0, 1, 1), 65504), (1,), 1e-9)
    _, run_, _ = cast(parse(CONV, {"w": weights}), "fp16")
    assert run_.loss.dead == ("'w'[1]",)
    assert run_.loss.zeros == 18


def test_bounds_and_masks_past_the_range_saturate_and_infinities_stay():
    body = """(float[N, 4] x, bool[N, 4] k) => (float[N, 4] y, float[N, 4] z) {
        h = Clip (x, low, high)
        y = Where (k, h, mask)
        z = Where (k, h, never)
    }"""
    low, high = np.array(-1, np.float32), np.array(3.4e38, np.float32)
    masks = {"mask": np.array(-3.4e38, np.float32), "never": np.array(-np.inf, np.float32)}
    out, run_, _ = cast(parse(body, {"low": low, "high": high, **masks}), "fp16")
    held = {tensor.name: float(numpy_helper.to_array(tensor)) for tensor in out.graph.initializer}
    assert held == {"low": -1, "high": 65504, "mask": -65504, "never": -np.inf}
    assert run_.loss.saturated == 2


def test_the_planted_mistake_of_half_statistics_fails_the_bound():
    """The same BatchNorm with its statistics merely rounded: float16 makes its gain infinite."""
    weights = {**ONES, "v": np.array([1, 1e-9, 1], np.float32)}
    body = BN.replace("BatchNormalization (", "BatchNormalization <epsilon = 1e-9> (")
    model = parse(body, weights)
    out, _, _ = cast(model, "fp16")
    x = rnd(2, 3, 2, 2)
    (truth,) = run(model, {"x": x})
    assert snr_db(truth, run(emulate(out, TensorProto.FLOAT16), {"x": x})[0]) > 55
    half = {key: value.astype(np.float16).astype(np.float32) for key, value in weights.items()}
    with np.errstate(divide="ignore"):
        gain = half["g"] / np.sqrt(half["v"] + np.float32(np.float16(1e-9)))
    assert np.isinf(gain[1])


@pytest.mark.parametrize("name", ["convolutional", "branches"])
def test_a_planted_mistake_in_one_weight_fails_the_bound(name):
    model, feeds = build(name, 18), NETWORKS[name][2]
    out, _, _ = cast(model, "fp16")
    for tensor in [t for graph in graphs(out.graph) for t in graph.initializer if t.name == "w"]:
        values = numpy_helper.to_array(tensor) * np.float16(1.01)
        tensor.CopyFrom(numpy_helper.from_array(values, "w"))
    truth = widen(model, feeds)[0]
    assert snr_db(truth, run(emulate(out, TensorProto.FLOAT16), feeds)[0]) < BOUND_DB["fp16"]


def test_a_domain_of_the_users_own_stays_while_the_opset_is_raised():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "own" : 1]>\nmain (float[N] x) => (float[N] y) { y = Relu (x) }'
    )
    raised = raise_opset(model, 21, onnx.TensorProto.BFLOAT16, "node 'n'")
    assert {entry.domain: entry.version for entry in raised.opset_import} == {"": 21, "own": 1}
    assert raised.ir_version >= 10
