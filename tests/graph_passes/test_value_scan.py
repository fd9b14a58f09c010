from __future__ import annotations

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.model_file import export_model, import_graph
from vsfix.graph_passes.value_scan import ValueFinding, ValueScan, require_representable

GEMM = "(float[N, 3] x) => (float[N, 3] y) { y = Gemm (x, w) }"


def gemm(parse, **places: float):
    weight = np.ones((3, 3), dtype=np.float32)
    for place, value in places.items():
        weight[int(place[1]), int(place[2])] = value
    return import_graph(parse(GEMM, {"w": weight}))


@pytest.mark.parametrize(
    ("value", "defect"), [(np.nan, "NaN"), (-np.inf, "infinite"), (65520, "overflow"), (1e-9, "underflow"), (-5e-5, "subnormal")]
)  # fmt: skip
def test_each_defect_is_named_with_tensor_and_output_channel(parse, value, defect):
    (finding,) = ValueScan("float16")(gemm(parse, p02=value))
    assert (finding.tensor, finding.channel, finding.defect, finding.count) == ("w", 2, defect, 1)
    assert "'w', channel 2" in str(finding)


def test_the_limits_are_those_of_the_type(parse):
    assert ValueScan("float16")(gemm(parse, p00=65504, p11=2.0**-14, p22=0.0)) == ()
    assert ValueScan("bfloat16")(gemm(parse, p00=65520, p11=1e-9)) == ()
    assert ValueScan()(gemm(parse, p00=1e38)) == ()


def test_what_is_only_less_precise_is_returned_and_what_is_wrong_is_refused(parse):
    (finding,) = require_representable(gemm(parse, p00=1e-9), "float16")
    assert finding == ValueFinding("w", 0, "underflow", "float16", 1, float(np.float32(1e-9)))
    with pytest.raises(CheckFailedError, match=r"float16: 'w', channel 2: .* NaN \(1 more like it\)"):
        require_representable(gemm(parse, p01=1e5, p02=np.nan), "float16")


def half_batch_norm(gamma: float) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\n'
        "main (float16[N, 3] x) => (float16[N, 3] y) { h = Relu (x)\n y = BatchNormalization (h, g, b, m, v) }"
    )
    ones = np.ones(3, dtype=np.float16)
    values = {"g": ones * np.float16([1, gamma, 1]), "b": ones, "m": ones * 0, "v": ones * np.float16([1, 0, 1])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in values.items())
    return model


def test_a_half_batch_norm_whose_scale_overflows_is_caught_by_name_and_channel():
    # gamma 250 and variance 0: 250 / sqrt(1e-5) = 79,057, which float16 has no number for, though all four are finite
    graph = import_graph(half_batch_norm(250))
    assert not FoldBatchNorm()(graph).modified
    for scan in (ValueScan(), ValueScan("float16")):
        (finding,) = scan(graph)
        assert (finding.tensor, finding.channel, finding.defect) == ("y: gamma / sqrt(var + epsilon)", 1, "overflow")
    assert ValueScan()(import_graph(half_batch_norm(200))) == ()
    assert ValueScan("float32")(graph) == ()


def test_a_scale_that_overflows_is_not_written_as_mul_and_add():
    model = half_batch_norm(250)
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString()
    (kept,) = FoldBatchNorm(residual="affine")(graph).kept
    assert "channel 1 would overflow float16" in kept.reason
    assert export_model(graph, model).SerializeToString() == before


def test_the_scan_looks_into_bodies(parse):
    body = """(float[N, 3] x, bool k) => (float[N, 3] y) {
        y = If (k) <then_branch = t () => (float[N, 3] p) { p = Gemm (x, w) },
                    else_branch = e () => (float[N, 3] q) { q = Neg (x) }> }"""
    graph = import_graph(parse(body, {"w": np.full((3, 3), 1e6, dtype=np.float32)}))
    assert [finding.channel for finding in ValueScan("float16")(graph)] == [0, 1, 2]


def test_the_advice_fits_the_defect(parse):
    with pytest.raises(CheckFailedError, match="keep this layer in a wider type"):
        require_representable(gemm(parse, p00=1e5), "float16")
    with pytest.raises(CheckFailedError, match="the file itself holds it"):
        require_representable(gemm(parse, p00=np.inf), "float16")
