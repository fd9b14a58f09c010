"""Layers that a narrow type breaks are planted; those and no others are put back to float32."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.checker
import pytest

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.ir.element_types import FLOAT16
from vsfix.graph_passes.precision.precision import CastPrecision, count_float_types, layer_groups, nodes_of_layers
from vsfix.graph_passes.precision.rounded_activations import emulate
from vsfix.pipeline.casting.cast_judge import CastJudge
from vsfix.pipeline.casting.casting import cast_model
from vsfix.pipeline.casting.putting_back import MOST, put_back
from vsfix.pipeline.casting.quantization import quantize_model

from .conftest import X, cast_command, drawn
from .test_quantization import fake_modelopt, modelopt  # noqa: F401

# One channel of r is a hundred times the others, past the range of +-5 that the ranges of the fake hold.
OUTLIER = """(float[N, 8] x) => (float[N, 4] y) {
    a = Gemm <transB = 1> (x, wa)  ra = Tanh (a)
    s = Mul (ra, spread)
    b = Gemm <transB = 1> (s, wb)  rb = Tanh (b)
    y = Gemm <transB = 1> (rb, wd)
}"""


@pytest.fixture
def outlier(parse):
    a, b, d = (array.T.copy() for array in drawn((8, 16), (16, 16), (16, 4)))
    spread = np.where(np.arange(16) == 3, 100, 1).astype(np.float32)
    return parse(OUTLIER, {"wa": a, "wb": b / spread, "wd": d, "spread": spread})


def snr_db(truth: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10((truth**2).sum() / ((found - truth) ** 2).sum()))


@pytest.mark.parametrize("kept", [0.99, 0.99999])
def test_the_layer_that_float16_breaks_is_put_back_and_no_other(overflow, open_model, kept):
    judge = CastJudge(overflow, [{"x": X}], open_model, output_kinds={"y": "values"})
    with pytest.raises(CheckFailedError, match=r"refused: in fp16.*--keep-metric 0.99"):
        cast_model(overflow, "fp16", {"x": X}, open_model, judge=judge)
    found = cast_model(overflow, "fp16", {"x": X}, open_model, judge=judge, keep=kept)
    back = found.report.put_back
    assert back.names == {"big"}
    (row,) = back.rows
    assert (back.before < 0.5, row.without == back.before, row.alone_db < 10) == (True, True, True)
    assert found.report.kept == ()
    onnx.checker.check_model(found.model, full_check=True)
    with open_model(overflow) as before, open_model(found.model) as after:
        truth, output = before.run({"x": X})["y"], after.run({"x": X})["y"]
    assert snr_db(truth.astype(np.float64), output) > 50
    # Another one in its place does not do.
    groups = layer_groups(import_graph(overflow))
    for other in ("a", "c", "y"):
        graph = import_graph(overflow)
        CastPrecision("fp16", nodes_of_layers(groups, [other]))(graph)
        assert judge.kept([emulate(export_model(graph, overflow), FLOAT16)]) < 0.9


def test_a_bfloat16_model_has_digits_put_back_by_what_each_layer_costs(parse, open_model):
    """No overflow: the share is one that some layers in bfloat16 miss; the costliest by itself goes first."""
    a, b, d = drawn((8, 16), (16, 16), (16, 4))
    body = "(float[N, 8] x) => (float[N, 4] y) { a = Gemm (x, wa) b = Gemm (a, wb) y = Gemm (b, wd) }"
    model = parse(body, {"wa": a, "wb": b, "wd": d})
    judge = CastJudge(model, [{"x": X}], open_model, output_kinds={"y": "values"})
    found = cast_model(model, "bf16", {"x": X}, open_model, judge=judge, keep=0.99999)
    costs = [row.alone_db for row in found.report.put_back.rows]
    assert 0 < len(costs) < 3
    assert costs == sorted(costs)
    assert found.report.put_back.after >= 0.99999
    again = cast_model(model, "bf16", {"x": X}, open_model, judge=judge, keep=0.99999)
    assert again.report == found.report


def test_a_weight_past_the_range_is_put_back(parse, open_model):
    a, b = drawn((8, 16), (16, 4))
    body = "(float[N, 8] x) => (float[N, 4] y) { a = Gemm (x, wa) t = Tanh (a) y = Gemm (t, wb) }"
    model = parse(body, {"wa": 1e6 * a, "wb": b})
    with pytest.raises(CheckFailedError, match="past the 65504"):
        cast_model(model, "fp16", {"x": X}, open_model)
    back = cast_model(model, "fp16", {"x": X}, open_model, keep=0.99).report.put_back
    assert (back.names, back.before, back.rows[0].alone_db) == ({"a"}, None, None)


def test_the_layer_with_an_outlier_channel_is_put_back_to_float32(fake_modelopt, outlier, open_model):  # noqa: F811
    fake_modelopt("good")
    batches = [{"x": X[:100]}, {"x": X[100:]}]
    with pytest.raises(CheckFailedError, match="refused: in int8"):
        quantize_model(outlier, "int8", batches, open_model)
    judge = CastJudge(outlier, batches, open_model)
    found = quantize_model(outlier, "int8", batches, open_model, judge=judge, keep=0.99)
    back = found.report.put_back
    assert back.names == {"b"}
    assert found.report.layers == {"int8": 2, "float32": 1}
    assert found.report.kept == ()
    nodes = {node.output[0]: node for node in found.model.graph.node}
    assert list(nodes["b"].input) == ["s", "wb"], "no pair is left around it"
    assert sum(node.op_type == "QuantizeLinear" for node in found.model.graph.node) == 4
    onnx.checker.check_model(found.model, full_check=True)


@pytest.mark.long
@pytest.mark.usefixtures("modelopt")
def test_modelopt_scales_an_outlier_channel_and_the_convolution_that_reads_it_is_put_back(parse, open_model):
    """One scale holds 200 and the others lose their digits: `b` reads them, whatever ModelOpt calls the nodes around."""
    rng = np.random.default_rng(4)
    a, b, d = (rng.normal(0, 0.2, shape).astype(np.float32) for shape in ((32, 16, 3, 3), (32, 32, 3, 3), (20, 32)))
    spread = np.where(np.arange(32) == 3, 200, 1).astype(np.float32)[:, None, None]
    body = """(float[N, 16, 6, 6] x) => (float[N, 20] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, wa)  t = Tanh (a)  s = Mul (t, spread)
        b = Conv <pads = [1, 1, 1, 1]> (s, wb)  u = Tanh (b)
        p = GlobalAveragePool (u)  f = Flatten (p)  y = Gemm <transB = 1> (f, wd)
    }"""
    model = parse(body, {"wa": a, "wb": b / spread[None, :, 0, 0].reshape(1, 32, 1, 1), "wd": d, "spread": spread})
    batches = [{"x": rng.normal(size=(32, 16, 6, 6)).astype(np.float32)} for _ in range(2)]
    judge = CastJudge(model, batches, open_model, output_kinds={"y": "values"})
    with pytest.raises(CheckFailedError, match="refused: in int8"):
        quantize_model(model, "int8", batches, open_model, judge=judge)
    found = quantize_model(model, "int8", batches, open_model, judge=judge, keep=0.99)
    (name,) = found.report.put_back.names
    (node,) = (node for node in found.model.graph.node if node.name == name)
    assert (list(node.output), list(node.input)) == (["b"], ["s", "wb"])


def planted(count: int, bad: dict[int, float]):
    """Layers that each cost a little, and some much; the share is what is left of 1."""
    layers = [f"l{number}" for number in range(count)]
    costs = {name: bad.get(number, 1e-6) for number, name in enumerate(layers)}
    asked = []

    def kept(wide):
        asked.append(wide)
        return 1 - sum(cost for name, cost in costs.items() if name not in wide)

    return layers, lambda wide: -10 * np.log10(max(1 - kept(wide), 1e-12)), kept, asked


@pytest.mark.parametrize("count", [5, MOST, 3 * MOST, 20 * MOST])
def test_planted_layers_are_found_in_few_runs(count):
    layers, snr, kept, asked = planted(count, {1: 0.05, 3: 0.2, count - 1: 0.1})
    found = put_back(layers, snr, kept, 0.98, "agreement", "fp16")
    assert [row.layers for row in found.rows] == [("l3",), (f"l{count - 1}",), ("l1",)]
    assert found.after >= 0.98 > max(row.without for row in found.rows), "each is needed"
    assert [found.after - row.without for row in found.rows] == pytest.approx([0.2, 0.1, 0.05])
    assert found.runs == len(asked) <= min(count, MOST) + 3 * MOST


def test_where_float32_itself_does_not_hold_the_bar_it_says_so():
    with pytest.raises(CheckFailedError, match=r"with all 3 layers put back to float32 the rest in fp16 keeps 0\.9"):
        put_back(["a", "b", "c"], lambda _: 10.0, lambda wide: 0.5 + 0.4 * (len(wide) == 3), 0.99, "it", "fp16")


def test_a_layer_that_the_metric_does_not_miss_stays_narrow():
    """The first one costs most in SNR and nothing in the metric."""
    alone = {"a": 5.0, "b": 10.0, "c": 60.0}
    found = put_back(
        ["a", "b", "c"],
        lambda wide: min(db for name, db in alone.items() if name not in wide),
        lambda wide: 1.0 if "b" in wide else 0.5,
        0.99,
        "it",
        "fp16",
    )
    assert found.names == {"b"}


def test_every_computing_node_belongs_to_one_layer(overflow):
    groups = layer_groups(import_graph(overflow))
    assert list(groups) == ["a", "big", "c", "y"]
    assert groups["big"] == ("big", "square", "mean", "root", "small")
    names = [name for nodes in groups.values() for name in nodes]
    assert len(names) == len(set(names)) == len(overflow.graph.node)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_kept_layer_computes_in_float32_between_casts(overflow, precision):
    model = onnx.version_converter.convert_version(overflow, 22) if precision == "bf16" else overflow
    graph = import_graph(model)
    groups = layer_groups(graph)
    CastPrecision(precision, nodes_of_layers(groups, ["big"]))(graph)
    counts = count_float_types(graph)
    assert counts["float32"] == len(groups["big"])
    (there,) = (node for node in graph.nodes if node.op == "Gemm" and node.outputs[0].name == "big")
    assert there.inputs[0].inputs[0].op == "Cast"
    assert {reader.op for reader in graph.tensors()["small"].outputs} == {"Cast"}


def test_a_file_in_which_nothing_is_left_narrow_is_warned_of(overflow, open_model):
    for keep, warned in ((1.0, True), (0.99, False)):
        judge = CastJudge(overflow, [{"x": X}], open_model, output_kinds={"y": "values"})
        report = cast_model(overflow, "fp16", {"x": X}, open_model, judge=judge, keep=keep).report
        assert (len(report.put_back.names) == 4) == warned
        assert any("all 4 layers had to be put back to float32" in said for said in report.warnings) == warned


def test_a_cast_that_random_numbers_alone_have_judged_is_no_pass(parse, call, tmp_path):
    a, b = drawn((8, 16), (16, 4))
    body = "(float[N, 8] x) => (float[N, 4] y) { a = Gemm (x, wa) h = Relu (a) y = Gemm (h, wb) }"
    onnx.save(parse(body, {"wa": 200 * a, "wb": b}), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=400 * X)  # on which float16 overflows
    command = cast_command(tmp_path, "fp16")
    assert call(*command, "--data", tmp_path / "x.npz").exit_code == 1
    blind = call(*command)
    assert blind.exit_code == 0
    assert "WARN Nothing repaired" in blind.stdout
    assert "compared on 16 samples of random numbers alone; give --data" in blind.output


def test_the_command_line_says_what_each_layer_bought(overflow, call, tmp_path):
    onnx.save(overflow, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=X)
    command = cast_command(tmp_path, "fp16")
    refused = call(*command, "--data", tmp_path / "x.npz")
    assert (refused.exit_code, "--keep-metric 0.99" in refused.stderr) == (1, True)
    result = call(
        *command,
        "--data",
        tmp_path / "x.npz",
        "--keep-metric",
        0.99,
        "--json",
        tmp_path / "o.json",
        "--html",
        tmp_path / "p.html",
    )
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "1 of 4 layers, by" in said
    assert "narrow alone" in said
    assert "<li>  big: " in (tmp_path / "p.html").read_text()
    document = json.loads((tmp_path / "o.json").read_text())["precision"]
    assert [row["layers"] for row in document["put_back"]["rows"]] == [["big"]]
    assert document["put_back"]["bar"] == 0.99
    for options, words in (
        (("--keep-metric", 0.99), "needs --data"),
        (("--keep-metric", 1.5, "--data", tmp_path / "x.npz"), "must be a share above 0 and up to 1"),
    ):
        wrong = call(*command, *options, "--force")
        assert (wrong.exit_code, words in wrong.stderr) == (2, True), wrong.stderr
    wide = call(*command[:-1], "fp32", "--keep-metric", 0.99, "--data", tmp_path / "x.npz", "--force")
    assert (wide.exit_code, "narrows no layer" in wide.stderr) == (2, True)


def test_tensorrt_rtx_builds_a_mixed_file(overflow, open_model, call, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    found = cast_model(overflow, "fp16", {"x": X}, open_model, keep=0.99)
    onnx.save(found.model, tmp_path / "mixed.onnx")
    shapes = ("--min-shapes", "x:1x8", "--opt-shapes", "x:8x8", "--max-shapes", "x:64x8")
    built = call(
        *("build", tmp_path / "mixed.onnx", "-o", tmp_path / "mixed.plan", "--runtime", "tensorrt-rtx"),
        *("--target", "sm89", *shapes),
    )
    assert built.exit_code == 0, built.output
    refused = call(
        "build",
        tmp_path / "mixed.onnx",
        "-o",
        tmp_path / "m.plan",
        "--runtime",
        "tensorrt-rtx",
        *shapes,
        "--target",
        "sm89",
        "--precision",
        "fp16",
    )
    assert (refused.exit_code, "leave --precision out" in refused.stderr) == (2, True)
