from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.precision.value_scan import ValueFinding, doubtful_constants, require_finite_values, scan_values

GEMM = """<ir_version: 8, opset_import: ["" : 18]>
main (KIND[N, 3] x) => (KIND[N, 3] y) { y = Gemm (x, w) }"""


def gemm(dtype=np.float16, **positions: float):
    weight = np.ones((3, 3))
    for position, value in positions.items():
        weight[int(position[1]), int(position[2])] = value
    kind = {"float16": "float16", "bfloat16": "bfloat16", "float32": "float"}[np.dtype(dtype).name]
    model = onnx.parser.parse_model(GEMM.replace("KIND", kind))
    with np.errstate(all="ignore"):
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(dtype), "w"))
    return import_graph(model)


@pytest.mark.parametrize(("value", "defect"), [(np.nan, "NaN"), (-np.inf, "infinite"), (-5e-5, "subnormal")])
def test_each_defect_is_named_with_tensor_and_output_channel(value, defect):
    (finding,) = scan_values(gemm(p02=value))
    assert (finding.tensor, finding.channel, finding.defect, finding.count) == ("w", 2, defect, 1)
    assert "'w', channel 2" in str(finding)


def test_the_limits_are_those_of_the_type():
    assert scan_values(gemm(p00=65504, p11=2.0**-14, p22=0.0)) == ()
    assert scan_values(gemm(ml_dtypes.bfloat16, p00=65520, p11=1e-9)) == ()
    assert scan_values(gemm(np.float32, p00=1e38)) == ()
    assert [finding.defect for finding in scan_values(gemm(np.float32, p00=1e-39))] == ["subnormal"]


def test_what_is_only_less_precise_is_returned_and_what_is_wrong_is_refused():
    (finding,) = require_finite_values(gemm(p00=2.0**-20))
    assert finding == ValueFinding("w", 0, "subnormal", "float16", 1, 2.0**-20)
    with pytest.raises(CheckFailedError, match=r"deployed: 'w', channel 2: .* NaN \(1 more like it\); the file itself"):
        require_finite_values(gemm(p01=1e5, p02=np.nan))


def test_what_nothing_is_multiplied_by_may_be_infinite(parse):
    body = "(float[N, 3] x, bool[N, 3] k) => (float[N, 3] y) { h = Where (k, x, m)  y = Add (h, m) }"
    assert scan_values(import_graph(parse(body, {"m": np.float32([-np.inf, 0, np.nan])}))) == ()


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
    (finding,) = scan_values(graph)
    assert (finding.tensor, finding.channel, finding.defect) == ("y: gamma / sqrt(var + epsilon)", 1, "overflow")
    assert scan_values(import_graph(half_batch_norm(200))) == ()
    with pytest.raises(CheckFailedError, match="in a wider type"):
        require_finite_values(graph)


def test_a_scale_that_overflows_is_not_written_as_mul_and_add():
    model = half_batch_norm(250)
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString()
    (kept,) = FoldBatchNorm(residual="affine")(graph).skipped
    assert "channel 1 would overflow float16" in kept.reason
    assert export_model(graph, model).SerializeToString() == before


def test_the_scan_looks_into_subgraphs(parse):
    body = """(float[N, 3] x, bool k) => (float[N, 3] y) {
        y = If (k) <then_branch = t () => (float[N, 3] p) { p = Gemm (x, w) },
                    else_branch = e () => (float[N, 3] q) { q = Neg (x) }> }"""
    graph = import_graph(parse(body, {"w": np.full((3, 3), np.inf, dtype=np.float32)}))
    assert [finding.channel for finding in scan_values(graph)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("values", "reported"),
    [
        ([-np.inf, 0, 0], 0),
        ([np.inf, -np.inf, 1], 0),
        ([1, 2, 3], 0),
        ([1, -np.inf, 3], 1),
        ([np.nan, 0, np.nan], 2),
    ],
)
def test_a_constant_that_is_no_mask_is_reported_and_unchanged(parse, values, reported):
    body = "(float[N, 3] x) => (float[N, 3] y) { y = Add (x, m) }"
    lines = doubtful_constants(import_graph(parse(body, {"m": np.float32(values)})))
    assert [f"{reported} values are not finite" in line and "'m', read by Add 'y'" in line for line in lines] == [True][
        :reported
    ]
