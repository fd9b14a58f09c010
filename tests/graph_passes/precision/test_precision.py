"""The cast: the right nodes changed, the others not, equal outputs, the full checker, and a second run idle."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnx.reference
import onnx.shape_inference
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from vsfix.graph_passes.errors import CheckFailedError, InputError, ModelError
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.io.opset import raise_opset
from vsfix.graph_passes.precision.constant_rounding import MULTIPLY_WEIGHTS
from vsfix.graph_passes.precision.float_cast import FloatCast
from vsfix.graph_passes.precision.precision import PRECISIONS, CastPrecision, count_float_types, split_activations
from vsfix.graph_passes.precision.rounded_activations import emulate

from .cast_proof import (
    BOUND_DB,
    NARROW,
    NETWORKS,
    OPSETS,
    all_nodes,
    build,
    cast,
    graphs,
    parse,
    rnd,
    run,
    snr_db,
    types_of,
    widen,
)


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


X = np.linspace(-8, 8, 400, dtype=np.float32).reshape(4, 100)
BODY = """(float[N, 100] x, bool k) => (float[N, 100] y) {
    h = OP (x)
    y = If (k) <then_branch = t () => (float[N, 100] p) { p = OP (h) },
                else_branch = e () => (float[N, 100] q) { q = Relu (h) }>
}"""


@pytest.mark.parametrize(
    ("op", "opset", "gates"), [("HardSwish", 22, ["HardSigmoid"]), ("Mish", 22, ["Softplus", "Tanh"])]
)
def test_the_product_is_the_activation_in_subgraphs_too(parse, op, opset, gates):
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
