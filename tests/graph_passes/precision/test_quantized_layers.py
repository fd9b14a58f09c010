from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.precision.quantized_layers import find_quantized_layers, leave_unquantized, quantized_nodes

CONV = """(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
    xq = QuantizeLinear (x, s, z)
    xd = DequantizeLinear (xq, s, z)
    wq = QuantizeLinear <axis: int = 0> (w, ws, wz)
    wd = DequantizeLinear <axis: int = 0> (wq, ws, wz)
    y = Conv (xd, wd)
}"""
WEIGHTS = {
    "s": np.array(0.05, np.float32),
    "z": np.array(0, np.int8),
    "w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
    "ws": np.full(4, 0.01, np.float32),
    "wz": np.zeros(4, np.int8),
}


def layers(parse, body, **weights):
    return find_quantized_layers(import_graph(parse(body, WEIGHTS | weights, opset=19)))


def test_a_layer_with_quantised_data_and_weight_counts(parse):
    found = layers(parse, CONV)
    assert (found.quantized, found.plain, found.per_tensor, found.split, found.total) == (("y",), (), (), (), 1)


def test_a_weight_that_is_stored_quantised_counts_too(parse):
    body = CONV.replace("wq = QuantizeLinear <axis: int = 0> (w, ws, wz)\n", "")
    found = layers(parse, body, wq=np.ones((4, 3, 3, 3), np.int8))
    assert (found.quantized, found.per_tensor) == (("y",), ())


@pytest.mark.parametrize(
    "body", [CONV.replace("Conv (xd, wd)", "Conv (x, wd)"), CONV.replace("Conv (xd, wd)", "Conv (xd, w)")]
)
def test_a_layer_with_one_quantised_operand_computes_in_float(parse, body):
    found = layers(parse, body)
    assert (found.quantized, found.plain) == ((), ("y",))


def test_one_scale_for_several_channels_is_seen(parse):
    found = layers(parse, CONV, ws=np.array(0.01, np.float32), wz=np.array(0, np.int8))
    assert found.per_tensor == ("y",)


def test_scales_along_the_input_channels_are_not_per_channel(parse):
    body = CONV.replace("<axis: int = 0>", "<axis: int = 1>")
    found = layers(parse, body, ws=np.full(3, 0.01, np.float32), wz=np.zeros(3, np.int8))
    assert found.per_tensor == ("y",)


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [("Gemm <transB: int = 1> (xd, wd)", (4, 5), 0), ("Gemm (xd, wd)", (5, 4), 1), ("MatMul (xd, wd)", (5, 4), 1)],
)
def test_the_output_channels_of_products_are_found(parse, layer, shape, axis):
    body = f"""(float[N, 5] x) => (float[N, 4] y) {{
        xq = QuantizeLinear (x, s, z)
        xd = DequantizeLinear (xq, s, z)
        wq = QuantizeLinear <axis: int = {axis}> (w, ws, wz)
        wd = DequantizeLinear <axis: int = {axis}> (wq, ws, wz)
        y = {layer}
    }}"""
    assert layers(parse, body, w=np.ones(shape, np.float32)).per_tensor == ()
    other = body.replace(f"axis: int = {axis}", f"axis: int = {1 - axis}")
    scales = {"ws": np.full(5, 0.01, np.float32), "wz": np.zeros(5, np.int8)}
    assert layers(parse, other, w=np.ones(shape, np.float32), **scales).per_tensor == ("y",)


DOWNSTREAM = """(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
    c = Conv (x, w)
    q = QuantizeLinear (c, s, z)
    d = DequantizeLinear (q, s, z)
    y = BatchNormalization (d, g, b, m, v)
}"""
PARAMETERS = {name: np.ones(4, np.float32) for name in "gbmv"}


def test_a_batch_norm_that_is_cut_off_from_its_convolution_is_seen(parse):
    assert layers(parse, DOWNSTREAM, **PARAMETERS).split == ("y",)


def test_a_convolution_that_others_read_too_could_not_be_folded_anyway(parse):
    body = DOWNSTREAM.replace("(float[N, 4, 6, 6] y)", "(float[N, 4, 6, 6] y, float[N, 4, 6, 6] r)")
    body = body.replace("y = Batch", "r = Relu (d)\n    y = Batch")
    assert layers(parse, body, **PARAMETERS).split == ()


def test_a_layer_is_left_unquantised_with_its_weight_and_the_others_keep_their_pairs(parse):
    body = CONV.replace("y = Conv (xd, wd)", "c = Conv (xd, wd)\n r = Relu (xd)\n k = Conv (r, wd)\n y = Add (c, k)")
    graph = import_graph(parse(body, WEIGHTS, opset=19))
    assert quantized_nodes(graph) == ("c", "r", "k")
    leave_unquantized(graph, import_graph(parse(body, WEIGHTS, opset=19)), ["c"])
    reads = {node.outputs[0].name: [tensor.name for tensor in node.inputs] for node in graph.nodes}
    assert (reads["c"], reads["r"], reads["k"]) == (["x", "w"], ["xd"], ["r", "wd"])
    leave_unquantized(graph, import_graph(parse(body, WEIGHTS, opset=19)), ["r", "k"])
    assert [node.op for node in graph.nodes] == ["Conv", "Relu", "Conv", "Add"]


def test_a_weight_in_eight_bits_alone_comes_from_the_float32_model(parse):
    body = CONV.replace("wq = QuantizeLinear <axis: int = 0> (w, ws, wz)\n", "")
    graph = import_graph(parse(body, WEIGHTS | {"wq": np.ones((4, 3, 3, 3), np.int8)}, opset=19))
    original = import_graph(parse("(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { y = Conv (x, w) }", WEIGHTS))
    leave_unquantized(graph, original, ["y"])
    (conv,) = graph.nodes
    np.testing.assert_array_equal(conv.inputs[1].values, WEIGHTS["w"])
    again = import_graph(parse(body, WEIGHTS | {"wq": np.ones((4, 3, 3, 3), np.int8)}, opset=19))
    other = import_graph(parse("(float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] z) { z = Relu (x) }", {}))
    with pytest.raises(ModelError, match="'y' has a weight in eight bits"):
        leave_unquantized(again, other, ["y"])
