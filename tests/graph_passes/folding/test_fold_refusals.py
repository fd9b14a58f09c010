"""Where a BatchNorm stays: the reason, and not a byte changed; see `fold_proof`."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph

from .fold_proof import BN, NORM, TAIL, build, draw, image, one, prove, statistics

PADDED = ("<pads = [1, 1]>", '<auto_pad = "SAME_LOWER">')


@pytest.mark.parametrize("attributes", PADDED)
def test_a_padded_downstream_convolution_is_refused_unless_the_shift_is_zero(attributes):
    body = image(NORM + f"y = Conv {attributes} (h, w)", shape="N, 4, 7")
    weights = {"w": draw(6, 4, 3)} | statistics(4)
    _, result = prove(build(body, weights), [BN, "Conv"])
    assert "pads with zeros" in result.skipped[0].reason
    prove(build(body, weights | {"b": np.zeros(4), "m": np.zeros(4)}), ["Conv"])


REFUSED = {
    "is read 2 times": (one("h = Conv (x, w)\n z = Relu (h)" + TAIL, "y, z"), {}),
    "is an output of the graph": (one("h = Conv (x, w)" + TAIL, "y, h"), {}),
    "comes from Add": (one("p = Conv (x, w)\n q = Conv (x, w)\n h = Add (p, q)" + TAIL), {}),
    "of the upstream Concat": (
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
    "channel 4 would overflow": (  # in its bias alone
        one("h = Conv (x, w)" + TAIL),
        {"m": np.r_[0, 0, 0, 0, -3e38, 0], "b": np.r_[0, 0, 0, 0, 3e38, 0], "g": np.ones(6), "v": np.ones(6)},
    ),
    "adds other than one value a channel": (one("p = Conv (x, w)\n h = Add (p, c)" + TAIL), {"c": draw(6, 5)}),
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
    assert reason in result.skipped[0].reason
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
    assert (result.modified, "training form" in result.skipped[0].reason) == (False, True)


MISFITS = {
    "the upstream Conv has 6 channels, the BatchNorm 5": ("h = Conv (x, w)" + TAIL, draw(6, 4, 3)),
    "the upstream Concat has 12 channels, the BatchNorm 5": (
        "p = Conv (x, w)\n q = Conv (x, w)\n h = Concat <axis = 1> (p, q)" + TAIL, draw(6, 4, 3),
    ),
    "the downstream Conv reads 4 channels, the BatchNorm has 5": (NORM + "y = Conv (h, w)", draw(6, 4, 3)),
}  # fmt: skip


@pytest.mark.parametrize("reason", MISFITS)
def test_a_batch_norm_of_other_channels_than_its_neighbour_is_refused(reason):
    """No valid model, but one that can be read."""
    text, weight = MISFITS[reason]
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]>\nmain (float[N, 4, 7] x) => (y) {{ {text} }}'
    )
    for name, values in ({"w": weight} | statistics(5)).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString()
    result = FoldBatchNorm()(graph)
    assert not result.modified
    assert reason in result.skipped[0].reason
    assert export_model(graph, model).SerializeToString() == before


TRANSPOSED = {
    "a longer kernel": ("", draw(4, 6, 3)),
    "strides": ("<strides = [2]>", draw(4, 6, 1)),
    "pads": ("<pads = [1, 1]>", draw(4, 6, 1)),
    "a longer output": ("<dilations = [2], output_padding = [1]>", draw(4, 6, 1)),
    "a shape of its own": ("<output_shape = [7]>", draw(4, 6, 1)),
}


@pytest.mark.parametrize("row", TRANSPOSED)
def test_a_downstream_transposed_convolution_is_refused_unless_it_gives_each_position_the_same(row):
    attributes, weight = TRANSPOSED[row]
    body = image(NORM + f"y = ConvTranspose {attributes} (h, w)", shape="N, 4, 7")
    _, result = prove(build(body, {"w": weight} | statistics(4)), [BN, "ConvTranspose"])
    assert "another part of its kernel" in result.skipped[0].reason


def test_a_downstream_gemm_that_reads_its_input_transposed_is_refused():
    body = "(FLOAT[4, 4] x) => (FLOAT[4, 6] y) { " + NORM + "y = Gemm <transA = 1> (h, w) }"
    _, result = prove(build(body, {"w": draw(4, 6)} | statistics(4)), [BN, "Gemm"])
    assert "reads its input transposed" in result.skipped[0].reason


def test_a_reshape_that_mixes_the_batch_into_the_channels_is_refused():
    text = "p = Conv (x, w)\n h = Reshape (p, s)" + TAIL
    model = build(one(text), {"w": draw(6, 4, 3), "s": np.array([-1, 5])} | statistics(5))
    _, result = prove(model, ["Conv", "Reshape", BN])
    assert "mixes the channels" in result.skipped[0].reason


def test_a_batch_norm_in_a_branch_downstream_of_a_convolution_outside_is_refused():
    body = """(FLOAT[N, 4, 7] x, bool k) => (FLOAT[N, 6, 5] y) {
        a = Conv (x, w)
        y = If (k) <then_branch = t () => (FLOAT[N, 6, 5] p) { p = BatchNormalization (a, g, b, m, v) },
                    else_branch = e () => (FLOAT[N, 6, 5] q) { q = Conv (x, w) }> }"""
    _, result = prove(build(body, {"w": draw(6, 4, 3)} | statistics()), ["Conv", "If"], k=np.array(True))
    assert "outside of the subgraph" in result.skipped[0].reason
