"""The form in which a model is built into a refittable engine, and what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.model_file import read_model
from vsfix.pipeline.refit_form import record_refit, take_refit_form

from .refit_network import REFITTABLE, network_weights, repaired_weights, write_network


@pytest.fixture
def form(parse, tmp_path):
    def take(weights, dtype=np.float32):
        path = write_network(parse, tmp_path / "m.onnx", weights, dtype)
        return take_refit_form(path, read_model(path))

    return take


def test_the_weights_are_those_of_the_fold_in_float64(form):
    found, weights = form(network_weights()).weights, network_weights()
    gain = weights["g"] / np.sqrt(weights["v"] + 1e-5)
    np.testing.assert_allclose(found["w"], weights["w"] * gain.reshape(-1, 1, 1, 1), rtol=2e-6)
    np.testing.assert_allclose(found["b"], gain * (weights["b"] - weights["m"]) + weights["s"], rtol=5e-6)
    np.testing.assert_allclose(found["last.scale"].ravel(), weights["g2"] / np.sqrt(weights["v2"] + 1e-5), rtol=2e-6)
    assert tuple(found) == REFITTABLE


def test_the_original_and_the_repaired_network_have_one_structure(form):
    before, after = form(network_weights()), form(repaired_weights())
    assert before.structure == after.structure
    assert form(network_weights(), np.float16).structure != before.structure
    changed = record_refit(after, "individual").weights
    assert all(changed[name] != old for name, old in record_refit(before, "individual").weights.items())


@pytest.mark.parametrize("options", [(), ("--no-fold",), ("--method", "none"), ("--method", "none", "--no-fold")])
def test_a_file_of_optimize_has_the_structure_of_the_original(call, onnx_path, tmp_path, options):
    data = () if "none" in options else ("--data", "digits", "--samples", 32, "--method", "match")
    result = call("optimize", onnx_path, "-o", tmp_path / "o.onnx", *data, *options)
    assert result.exit_code == 0, result.output
    original, optimized = (take_refit_form(path, read_model(path)) for path in (onnx_path, tmp_path / "o.onnx"))
    assert optimized.structure == original.structure
    same = [np.array_equal(optimized.weights[name], values) for name, values in original.weights.items()]
    assert all(same) is ("none" in options)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_cast_of_the_original_and_one_of_the_repaired_network_have_one_structure(
    call, onnx_path, tmp_path, precision
):
    forms = []
    for name, options in (
        ("a", ("--method", "none")),
        ("b", ("--data", "digits", "--samples", 32, "--method", "match")),
    ):
        path = tmp_path / f"{name}.onnx"
        result = call("optimize", onnx_path, "-o", path, *options, "--precision", precision)
        assert result.exit_code == 0, result.output
        forms.append(take_refit_form(path, read_model(path)))
    assert forms[0].structure == forms[1].structure
    assert {values.dtype.name for values in forms[0].weights.values()} == {
        {"fp16": "float16", "bf16": "bfloat16"}[precision]
    }


REFUSED = {
    "quantised": (
        "(float[N, 4] x) => (float[N, 4] y) { [q] h = QuantizeLinear (x, s)  y = DequantizeLinear (h, s) }",
        {"s": np.float32(0.1)},
        "'q' quantises, and the scales of a quantised engine belong to the weights",
    ),
    "no weights": ("(float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }", {}, "there is nothing to refit"),
    "a BatchNorm that stays": (
        "(float[N, 4] x, float[4] g) => (float[N, 4] y) { [norm] y = BatchNormalization (x, g, b, b, b) }",
        {"b": np.ones(4, np.float32)},
        "BatchNorm 'norm' can't become weights: .*'g' is computed by the graph",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_such_form_is_refused_with_the_reason(parse, tmp_path, case):
    body, weights, words = REFUSED[case]
    onnx.save(parse(body, weights), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=words):
        take_refit_form(tmp_path / "m.onnx", read_model(tmp_path / "m.onnx"))
