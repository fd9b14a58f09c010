"""The networks of the project in each precision, and `vsfix optimize --precision` as a user types it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.checker
import pytest
import torch
from onnx import TensorProto, numpy_helper

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_model, write_model
from vsfix.graph_passes.ir.graph_pass import PassPipeline
from vsfix.graph_passes.ir.remove_identities import RemoveIdentities
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.precision.precision import CastPrecision
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from vsfix.pipeline.casting.casting import MIN_SNR_DB, cast_model
from vsfix.trainers.export.onnx_export import export_onnx
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig, build_network

NAMES = {"fp16": "float16", "bf16": "bfloat16"}
NETWORKS = ("preresnet-8", "wrn-10-1", "densenet-10-4", "resnext-11-2x4d", "mlp-2")


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, tuple[onnx.ModelProto, np.ndarray, np.ndarray]]:
    """Each network folded, some inputs, and what torch computes on them in float64."""
    found = {}
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    for name in NETWORKS:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            module = build_network(NetworkConfig(name, 1, (8, 8), 10, NoiseSites(a=Noise.parse("dropout:0.3")))).train()
            with torch.no_grad():
                for _ in range(5):
                    module(torch.randn(32, 1, 8, 8) + 0.2)
        path = tmp_path_factory.mktemp("network") / f"{name}.onnx"
        export_onnx(module.eval(), x, path)
        model = read_model(path)
        graph = import_graph(model)
        PassPipeline([RemoveMarkers(), RemoveIdentities(), FoldBatchNorm()])(graph)
        with torch.no_grad():
            truth = module.double()(x.double()).numpy()
        found[name] = (export_model(graph, model), x.numpy(), truth)
    return found


def snr_db(truth: np.ndarray, found: np.ndarray) -> float:
    noise = found.astype(np.float64) - truth
    return float(10 * np.log10((truth**2).sum() / (noise**2).sum()))


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", NAMES)
def test_a_folded_network_in_a_narrow_type_agrees_with_torch_in_float64(networks, name, precision):
    model, x, truth = networks[name]
    cast = cast_model(model, precision, {"input": x}, open_for_small_runs)
    onnx.checker.check_model(cast.model, full_check=True)
    assert set(cast.report.layers) == {NAMES[precision]}, "every layer computes in the type"
    assert cast.report.kept == ()
    with OnnxRuntimeRunner(cast.runnable) as runner:
        measured = snr_db(truth, runner.run({"input": x})["logits"])
    assert measured > MIN_SNR_DB[precision] + 3
    assert cast.report.snr_db == pytest.approx(measured, abs=2)
    assert not CastPrecision(precision)(import_graph(cast.model)).modified


@pytest.mark.parametrize("name", NETWORKS)
def test_the_float16_file_itself_agrees_with_torch_in_float64(networks, name):
    model, x, truth = networks[name]
    with OnnxRuntimeRunner(cast_model(model, "fp16", {"input": x}, open_for_small_runs).model) as runner:
        assert snr_db(truth, runner.run({"input": x})["logits"]) > MIN_SNR_DB["fp16"] + 3


def test_an_activation_past_the_range_is_refused_though_the_runtime_does_not_see_it():
    """300.7 squared is no float16, but ONNX Runtime multiplies and takes the root in float32, without a cast between."""
    body = "(float[N, 2] x) => (float[N, 2] y) { h = Mul (x, x)\n y = Sqrt (h) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\nmain {body}')
    x = np.array([[300.7, 2.1]], np.float32)
    graph = import_graph(model)
    CastPrecision("fp16")(graph)
    with OnnxRuntimeRunner(export_model(graph, model)) as runner:
        np.testing.assert_allclose(runner.run({"x": x})["y"], x, rtol=1e-3)
    with pytest.raises(CheckFailedError, match="differs from what it was"):
        cast_model(model, "fp16", {"x": x}, open_for_small_runs)
    assert cast_model(model, "bf16", {"x": x}, open_for_small_runs).report.snr_db > MIN_SNR_DB["bf16"]


def test_a_wrong_cast_misses_the_gate(networks, monkeypatch):
    """The planted mistake: a weight that is cut off instead of rounded, in the type of four bits less."""
    import vsfix.graph_passes.precision.weight_rounding as rounding

    def cut(values, code):
        found = np.asarray(values, np.float32).view(np.uint32) & np.uint32(0xFFF00000)
        return found.view(np.float32).astype(rounding.DTYPES[code])

    monkeypatch.setattr(rounding, "round_to", cut)
    model, x, _ = networks["preresnet-8"]
    with pytest.raises(CheckFailedError, match="differs from what it was"):
        cast_model(model, "fp16", {"input": x}, open_for_small_runs)


@pytest.mark.parametrize("precision", ["fp32", *NAMES])
def test_optimize_writes_the_precision_that_was_asked_for_and_says_so(call, onnx_path, tmp_path, precision):
    out, document = tmp_path / "out.onnx", tmp_path / "out.json"
    result = call(
        *("optimize", onnx_path, "-o", out, "--data", "digits", "--samples", 32, "--precision", precision),
        *("--json", document, "--html", tmp_path / "out.html"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(document.read_text())["precision"]
    name = {"fp32": "float32", **NAMES}[precision]
    assert set(report["layers"]) == {name}
    assert report["precision"] == precision
    model = read_model(out)
    kind = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    assert {t.data_type for t in model.graph.initializer if t.data_type != TensorProto.INT64} == {kind}
    assert [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)] == [TensorProto.FLOAT] * 2
    assert f"layers in {name}" in result.stdout


@pytest.mark.long
def test_a_bfloat16_model_is_judged_on_labels_though_the_runtime_can_not_run_it(call, onnx_path, tmp_path):
    """Labels that the original never gives, so that no repair loses on them."""
    x = np.random.default_rng(0).normal(0, 1, (50, 1, 8, 8)).astype(np.float32)
    with OnnxRuntimeRunner(onnx_path) as runner:
        labels = (runner.run({"input": x})["logits"].argmax(axis=1) + 1) % 10
    np.savez(tmp_path / "l.npz", input=x, labels=labels)
    arguments = ("optimize", onnx_path, "--dry-run", "--data", "digits", "--samples", 32, "--method", "match")
    arguments += ("--precision", "bf16")
    result = call(*arguments, "--eval-data", tmp_path / "l.npz")
    assert result.exit_code == 0, result.output
    assert "top-1 0.0 ->" in result.stdout


def test_a_file_that_was_cast_unfolded_can_not_be_repaired_again_and_says_why(call, onnx_path, tmp_path):
    half = tmp_path / "half.onnx"
    arguments = ("--data", "digits", "--samples", 32, "--no-fold", "--precision", "fp16")
    assert call("optimize", onnx_path, "-o", half, *arguments).exit_code == 0
    result = call("optimize", half, "-o", tmp_path / "again.onnx", *arguments)
    assert result.exit_code == 2
    assert "holds no statistics any more" in result.stderr


def spoil(path, target, weight: str, value: float) -> None:
    """The model with one weight of a channel replaced."""
    model = read_model(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    values = numpy_helper.to_array(tensor).copy()
    values[3] = value
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    write_model(model, target, force=True)


def test_a_gain_past_the_range_ends_optimize_with_the_channel_and_nothing_is_written(call, onnx_path, tmp_path):
    model = tmp_path / "spoilt.onnx"
    spoil(onnx_path, model, "layers.0.bn.weight", 1e6)
    before = sorted(tmp_path.iterdir())
    arguments = ("optimize", model, "-o", tmp_path / "o.onnx", "--data", "digits", "--samples", 32, "--no-fold")
    result = call(*arguments, "--method", "none", "--precision", "fp16")
    assert result.exit_code == 1
    assert "gain of BatchNorm 'layers.0.bn', channel 3" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_float16_file_that_a_runtime_would_make_infinite_is_refused_as_it_is(call, tmp_path):
    """Nothing is cast here: the file came in float16."""
    body = """(float16[N, 3, 2, 2] x) => (float16[N, 3, 2, 2] y) {
        h = Relu (x)
        y = BatchNormalization (h, g, be, m, v)
    }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\nmain {body}')
    ones = {key: np.ones(3, np.float16) for key in ("g", "be", "m", "v")}
    ones["g"][1] = 6e4  # over a root near 0.6
    model.graph.initializer.extend(numpy_helper.from_array(values, key) for key, values in ones.items())
    write_model(model, tmp_path / "half.onnx", force=False)
    x = np.random.default_rng(0).normal(size=(32, 3, 2, 2)).astype(np.float16)
    np.savez(tmp_path / "x.npz", x=x)
    out, exact = tmp_path / "o.onnx", ("--method", "exact", "--layers", "all")
    result = call("optimize", tmp_path / "half.onnx", "-o", out, "--data", tmp_path / "x.npz", *exact)
    assert result.exit_code == 1, result.output
    assert "gain of BatchNorm 'y', channel 1" in result.stderr
    assert not out.exists()
