"""The comparison itself, on layers as a parser would give them; `test_tensorrt_rtx` reads those of TensorRT-RTX."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.pipeline.tensorrt.engine_layers import ParsedLayer, UnreadableValues
from vsfix.pipeline.tensorrt.engine_readback import read_back, require_read_back, skipped_reasons, summarize

GRAPH = """(float[N, 3, 8, 8] x) => (float[N, 5] y) {
    [conv] c = Conv (x, w, b)
    [norm] n = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    p = GlobalAveragePool (n)
    f = Flatten (p)
    [fc] y = Gemm <transB: int = 1> (f, "fc.weight", "fc.bias")
}"""


QUANTIZED = """(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
    z = Constant <value: tensor = int8 {0}> ()
    q = QuantizeLinear (w, s, z)
    d = DequantizeLinear (q, s, z)
    [conv] y = Conv (x, d, b)
}"""


@pytest.fixture
def weights():
    rng = np.random.default_rng(1)
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "bn.weight": (4,), "bn.bias": (4,), "bn.running_mean": (4,)}
    found = {name: rng.normal(size=shape) for name, shape in (shapes | {"fc.weight": (5, 4), "fc.bias": (5,)}).items()}
    found["bn.running_var"] = rng.uniform(0.1, 2, 4)
    return {name: values.astype(np.float32) for name, values in found.items()}


@pytest.fixture
def graph(parse, weights) -> gs.Graph:
    return import_graph(parse(GRAPH, weights))


@pytest.fixture
def parsed(weights):
    """The values of each layer, folded in float32 as TensorRT's parser does."""
    g = weights["bn.weight"] / np.sqrt(weights["bn.running_var"] + np.float32(1e-5))
    s = weights["bn.bias"] - g * weights["bn.running_mean"]
    return {
        ("conv", "CONVOLUTION"): {"kernel": weights["w"].copy(), "bias": weights["b"].copy()},
        ("norm", "SCALE"): {"scale": g, "shift": s, "power": np.zeros(0, np.float32)},
        ("fc.weight", "CONSTANT"): {"weights": weights["fc.weight"].copy()},
        ("fc.bias", "CONSTANT"): {"weights": weights["fc.bias"].copy()},
    }


def layers(parsed):
    for (name, kind), values in parsed.items():
        flat = {key: value.reshape(-1) for key, value in values.items()}
        yield ParsedLayer(name, "" if kind == "CONSTANT" else name, kind, ("FLOAT",), lambda flat=flat: flat)


def test_a_faithful_parse_passes(graph, parsed):
    result = read_back(graph, layers(parsed))
    assert (result.status, len(result.rows), result.count("PASS", "SCALE")) == ("PASS", 6, 2)
    assert 0 < result.largest_error < 3e-7
    assert summarize(result).startswith("PASS read back: 2 scales and shifts of BatchNorms and 4 kernels")
    require_read_back(result)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        (("norm", "SCALE"), "scale", "bn"),
        (("norm", "SCALE"), "shift", "bn"),
        (("conv", "CONVOLUTION"), "kernel", "conv"),
        (("conv", "CONVOLUTION"), "bias", "conv"),
        (("fc.weight", "CONSTANT"), "weights", "fc.weight"),
    ],
)
def test_a_planted_wrong_value_is_seen_and_named_with_its_channel(graph, parsed, key, value, name):
    parsed[key][value][2] *= np.float32(1 + 1e-5)
    with pytest.raises(CheckFailedError, match=rf"{value} of '{name}', channel 2, is off by"):
        require_read_back(read_back(graph, layers(parsed)))


@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_a_value_that_is_not_finite_is_seen(graph, parsed, wrong):
    parsed["norm", "SCALE"]["scale"][1] = wrong
    with pytest.raises(CheckFailedError, match="scale of 'bn', channel 1, is off by inf"):
        require_read_back(read_back(graph, layers(parsed)))


def test_a_scale_that_is_infinite_in_the_file_too_is_no_success(parse, weights, parsed):
    weights["bn.weight"][3] = np.inf
    parsed["norm", "SCALE"]["scale"][3] = np.inf
    result = read_back(import_graph(parse(GRAPH, weights)), layers(parsed))
    assert result.status == "FAIL"


def test_values_that_are_missing_or_raised_to_a_power_are_seen(graph, parsed):
    parsed["norm", "SCALE"]["shift"] = np.zeros(0, np.float32)
    parsed["norm", "SCALE"]["power"] = np.full(4, 2, np.float32)
    failed = [row.value for row in read_back(graph, layers(parsed)).rows if row.status == "FAIL"]
    assert failed == ["shift", "power"]


def test_a_shift_that_cancels_is_held_against_what_it_is_the_difference_of(parse, weights, parsed):
    weights["bn.weight"][:], weights["bn.running_var"][:] = 3, 0.7
    weights["bn.running_mean"][:] = 1e4
    g = np.float32(3) / np.sqrt(np.float32(0.7) + np.float32(1e-5))
    weights["bn.bias"][:] = g * np.float32(1e4)
    parsed["norm", "SCALE"] = {"scale": np.full(4, g), "shift": np.zeros(4, np.float32), "power": np.zeros(0)}
    require_read_back(read_back(import_graph(parse(GRAPH, weights)), layers(parsed)))


def test_what_can_not_be_compared_says_why(graph, parsed):
    def unreadable():
        raise UnreadableValues("no values of this type")

    del parsed["norm", "SCALE"]
    found = [layer for layer in layers(parsed) if layer.kind != "CONVOLUTION"]
    found.append(ParsedLayer("conv", "conv", "CONVOLUTION", ("BF16",), unreadable))
    result = read_back(graph, found)
    assert (result.status, result.count("SKIP")) == ("PASS", 4)
    assert set(skipped_reasons(result)) == {
        "scale of 'bn': TensorRT made no SCALE layer of it",
        "kernel of 'conv': no values of this type",
    }


def test_nodes_of_one_name_are_told_apart_by_their_order(parse):
    body = """(float[N, 4] x) => (float[N, 4] y) {
        [same] a = BatchNormalization (x, g, b, m, v)
        [same] y = BatchNormalization (a, g2, b, m, v)
    }"""
    ones = {name: np.ones(4, np.float32) for name in ("g", "b", "m", "v")} | {"g2": np.full(4, 2, np.float32)}
    scales = [np.full(4, factor / np.sqrt(1 + 1e-5), np.float32) for factor in (1, 2)]
    found = [
        ParsedLayer(f"same_{i}", "same", "SCALE", ("FLOAT",), lambda s=s: {"scale": s, "shift": 1 - s})
        for i, s in enumerate(scales)
    ]
    assert read_back(import_graph(parse(body, ones)), found).status == "PASS"
    assert read_back(import_graph(parse(body, ones)), found[::-1]).status == "FAIL"


def test_the_bias_of_a_quantised_convolution_is_compared(parse, weights):
    graph = import_graph(parse(QUANTIZED, {name: weights[name] for name in "wb"} | {"s": np.float32(0.1)}))
    conv = {"kernel": np.zeros(0, np.float32), "bias": weights["b"].copy()}
    held = {("conv", "CONVOLUTION"): conv, ("w", "CONSTANT"): {"weights": weights["w"].copy()}}
    result = read_back(graph, layers(held))
    assert [(row.node, row.value) for row in result.rows if row.status == "PASS"] == [
        ("conv", "bias"),
        ("w", "weights"),
    ]
    conv["bias"][2] *= np.float32(1.001)
    with pytest.raises(CheckFailedError, match=r"bias of 'conv', channel 2, is off by 0\.001"):
        require_read_back(read_back(graph, layers(held)))


def test_a_bias_downstream_of_an_identity_is_the_tensor_that_tensorrt_adds(parse, weights):
    body = """(float[N, 2, 6, 6] x) => (float[N, C, H, W] y) { i = Identity (b) [conv] y = Conv (x, w, i) }"""
    graph = import_graph(parse(body, {"w": weights["w"], "b": weights["b"]}))
    conv = {"kernel": weights["w"].copy(), "bias": np.zeros(0, np.float32)}
    held = {("conv", "CONVOLUTION"): conv, ("b", "CONSTANT"): {"weights": weights["b"].copy()}}
    result = read_back(graph, layers(held))
    assert result.status == "PASS"
    assert ("b", "weights") in [(row.node, row.value) for row in result.rows if row.status == "PASS"]
    conv["kernel"][0] *= np.float32(1.001)
    assert read_back(graph, layers(held)).status == "FAIL"
