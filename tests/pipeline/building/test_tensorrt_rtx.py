"""TensorRT-RTX itself: its parser and its builder need no GPU, so every deployed graph is compiled for real here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch

from vsfix.graph_passes.errors import CheckFailedError, InputError
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_model, write_model
from vsfix.graph_passes.ir.graph_pass import PassPipeline
from vsfix.graph_passes.ir.remove_identities import RemoveIdentities
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.graph_passes.noise.noise import Noise
from vsfix.pipeline.building.build_config import BuildConfig
from vsfix.pipeline.building.building import build_engine
from vsfix.pipeline.casting.casting import cast_model
from vsfix.pipeline.tensorrt.engine_file import sidecar_path
from vsfix.pipeline.tensorrt.engine_readback import read_back, require_read_back
from vsfix.pipeline.tensorrt.library import check_parser, open_library
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions
from vsfix.trainers.export.onnx_export import export_onnx
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig, build_network

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed; run: pip install 'vsfix[rtx]'")

NETWORKS = ("preresnet-8", "preresnet-20", "wrn-10-1", "densenet-10-4", "resnext-11-2x4d", "mlp-2")
TARGETS = ("sm80", "sm86", "sm89", "sm120")
SHAPES = ShapeOptions(None, "input:1x1x8x8", "input:4x1x8x8", "input:16x1x8x8")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Each network as exported (BatchNorms kept) and folded, by file."""
    found = {}
    for name in NETWORKS:
        folder = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            module = build_network(NetworkConfig(name, 1, (8, 8), 10, NoiseSites(a=Noise.parse("dropout:0.3")))).train()
            with torch.no_grad():
                for _ in range(3):
                    module(torch.randn(32, 1, 8, 8) + 0.2)
        export_onnx(module.eval(), torch.randn(2, 1, 8, 8), folder / "kept.onnx")
        model = read_model(folder / "kept.onnx")
        graph = import_graph(model)
        PassPipeline([RemoveMarkers(), RemoveIdentities(), FoldBatchNorm()])(graph)
        write_model(export_model(graph, model), folder / "folded.onnx", force=False)
        found[name] = folder
    return found


def config(**settings) -> BuildConfig:
    return BuildConfig(**({"runtime": "tensorrt-rtx", "shapes": SHAPES, "targets": TARGETS} | settings))


@pytest.mark.long
@pytest.mark.parametrize("form", ["kept", "folded"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_builds_for_every_target_with_the_weights_that_float64_says(networks, tmp_path, name, form):
    path = networks[name] / f"{form}.onnx"
    report = build_engine(path, tmp_path / "e.plan", config(precision="fp32"))
    model = onnx.load(path)
    operators = [node.op_type for node in model.graph.node]
    assert report.read_back.count("PASS", "SCALE") == 2 * operators.count("BatchNormalization")
    assert report.read_back.count("PASS", "CONVOLUTION") >= operators.count("Conv")
    assert report.read_back.count("PASS", "CONSTANT") >= 2 * operators.count("Gemm") > 0
    assert report.read_back.count("PASS") == len(report.read_back.rows)
    assert report.read_back.largest_error < 1e-6
    assert {row.tolerance for row in report.read_back.rows} == {1e-6}
    assert (tmp_path / "e.plan").stat().st_size == report.plan["bytes"] > 10_000


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_builds_alone(networks, tmp_path, target):
    report = build_engine(networks["preresnet-8"] / "folded.onnx", tmp_path / "e.plan", config(targets=(target,)))
    assert report.targets == (target,)


def test_the_scales_of_the_parser_are_those_of_torch(networks):
    path = networks["preresnet-8"] / "kept.onnx"
    model = read_model(path)
    weights = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()).double() for t in model.graph.initializer}
    parsed = open_library("tensorrt-rtx").parse(path, model)
    scales = {layer.node: layer.read() for layer in parsed.layers if layer.kind == "SCALE"}
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert len(nodes) == len(scales) == 7
    for node in nodes:
        gamma, beta, mean, var = (weights[name] for name in node.input[1:5])
        one, zero = torch.ones(1, len(gamma), dtype=torch.float64), torch.zeros(1, len(gamma), dtype=torch.float64)
        shift, both = (torch.nn.functional.batch_norm(x, mean, var, gamma, beta, eps=1e-5)[0] for x in (zero, one))
        np.testing.assert_allclose(scales[node.name]["scale"], (both - shift).numpy(), rtol=1e-6)
        np.testing.assert_allclose(scales[node.name]["shift"], shift.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("operator", "position"), [("BatchNormalization", 1), ("BatchNormalization", 4), ("Conv", 1), ("Gemm", 1)]
)
def test_a_planted_wrong_weight_is_seen(networks, operator, position):
    path = networks["preresnet-8"] / "kept.onnx"
    model = read_model(path)
    parsed = open_library("tensorrt-rtx").parse(path, model)
    node = next(node for node in model.graph.node if node.op_type == operator)
    tensor = next(t for t in model.graph.initializer if t.name == node.input[position])
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[-1] *= np.float32(1 + 1e-5)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    with pytest.raises(CheckFailedError, match="TensorRT does not hold what the file says"):
        require_read_back(read_back(import_graph(model), parsed.layers))


@pytest.mark.parametrize(("precision", "kind"), [("fp16", "HALF"), ("bf16", "BF16")])
def test_a_cast_network_builds_in_its_own_types(networks, tmp_path, open_model, precision, kind):
    model = cast_model(read_model(networks["densenet-10-4"] / "folded.onnx"), precision, {}, open_model).model
    write_model(model, tmp_path / "m.onnx", force=False)
    report = build_engine(tmp_path / "m.onnx", tmp_path / "e.plan", config(precision=precision))
    assert report.precision.network["CONVOLUTION"] == {kind: 9}
    assert report.precision.network["SCALE"] == {kind: 6}
    assert report.read_back.status == ("PASS" if precision == "fp16" else "SKIP")
    with pytest.raises(
        InputError, match=rf"fp32 was asked for.* 10 in {'bfloat' if precision == 'bf16' else 'float'}16"
    ):
        build_engine(tmp_path / "m.onnx", tmp_path / "f.plan", config(precision="fp32"))


def test_a_quantised_network_builds_and_is_not_called_float32(parse, tmp_path):
    body = """(float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] y) {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        k = DequantizeLinear <axis: int = 0> (w, ws, wz)
        y = Conv (d, k)
    }"""
    rng = np.random.default_rng(0)
    weights = {"s": np.array(0.05, np.float32), "z": np.array(0, np.int8), "wz": np.zeros(4, np.int8)}
    weights |= {"w": rng.integers(-127, 127, (4, 3, 3, 3)).astype(np.int8), "ws": np.full(4, 0.01, np.float32)}
    onnx.save(parse(body, weights), tmp_path / "m.onnx")
    report = build_engine(tmp_path / "m.onnx", tmp_path / "e.plan", config(shapes=ShapeOptions()))
    assert "QUANTIZE" in report.precision.network
    with pytest.raises(InputError, match="holds quantised layers"):
        build_engine(tmp_path / "m.onnx", tmp_path / "f.plan", config(shapes=ShapeOptions(), precision="fp32"))


@pytest.mark.parametrize(("quantized", "fails"), [("data", True), ("weight", True), ("both", False)])
def test_a_network_that_computes_in_float_is_no_int8_for_its_quantised_tensors(parse, tmp_path, quantized, fails):
    body = """(float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] y) {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        k = DequantizeLinear <axis: int = 0> (w, ws, wz)
        y = Conv (DATA, WEIGHT)
    }"""
    body = body.replace("DATA", "x" if quantized == "weight" else "d")
    rng = np.random.default_rng(0)
    weights = {"s": np.array(0.05, np.float32), "z": np.array(0, np.int8), "wz": np.zeros(4, np.int8)}
    weights |= {"w": rng.integers(-127, 127, (4, 3, 3, 3)).astype(np.int8), "ws": np.full(4, 0.01, np.float32)}
    weights["plain"] = weights["w"].astype(np.float32)
    onnx.save(parse(body.replace("WEIGHT", "plain" if quantized == "data" else "k"), weights), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="none of its 1 layers") if fails else nullcontext():
        build_engine(tmp_path / "m.onnx", tmp_path / "e.plan", config(shapes=ShapeOptions(), precision="int8"))
    assert (tmp_path / "e.plan").exists() is not fails


def test_a_batch_norm_that_overflows_in_float16_is_refused_before_the_build(parse, tmp_path):
    body = '(float16[1, 4] x) => (float16[1, 4] y) { y = BatchNormalization (x, g, b, "bn.running_mean", "bn.running_var") }'
    var = np.array([1, 1, 1e-5, 1], np.float16)
    weights = {"g": np.full(4, 300, np.float16), "b": np.zeros(4, np.float16)}
    model = parse(body, weights | {"bn.running_mean": np.zeros(4, np.float16), "bn.running_var": var})
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(
        CheckFailedError, match=r"'bn', channel 2: .* past the 65504 of float16: TensorRT would make it infinite"
    ):
        build_engine(tmp_path / "m.onnx", tmp_path / "e.plan", config(shapes=ShapeOptions()))
    assert list(tmp_path.iterdir()) == [tmp_path / "m.onnx"]


def test_tensorrt_really_makes_that_batch_norm_infinite(parse, tmp_path):
    """Why the check stands before the build."""
    body = "(float16[1, 4, 2, 2] x) => (float16[1, 4, 2, 2] y) { y = BatchNormalization (x, g, b, m, v) }"
    weights = {name: np.full(4, value, np.float16) for name, value in (("g", 300), ("b", 0), ("m", 0), ("v", 1e-5))}
    onnx.save(parse(body, weights), tmp_path / "m.onnx")
    parsed = open_library("tensorrt-rtx").parse(tmp_path / "m.onnx", read_model(tmp_path / "m.onnx"))
    (scale,) = (layer for layer in parsed.layers if layer.kind == "SCALE")
    assert np.isinf(scale.read()["scale"]).all()


def test_the_sidecar_says_what_was_built_and_how_it_is_known(networks, tmp_path):
    path, plan = networks["mlp-2"] / "kept.onnx", tmp_path / "e.plan"
    build_engine(path, plan, config(precision="tf32", workspace=1 << 26))
    document = json.loads(sidecar_path(plan).read_text())
    assert (document["schema_version"], document["runtime"], document["targets"]) == (1, "tensorrt-rtx", list(TARGETS))
    assert document["model"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert document["plan"]["sha256"] == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert document["profile"] == {
        "input": {"minimum": [1, 1, 8, 8], "optimum": [4, 1, 8, 8], "maximum": [16, 1, 8, 8]}
    }
    proof = document["precision"]
    assert (proof["asked"], proof["tensor_float"], proof["network"]["MATRIX_MULTIPLY"]) == ("tf32", True, {"FLOAT": 3})
    assert proof["source"] == ("parsed network" if proof["engine"] is None else "engine inspector")
    assert (document["read_back"]["status"], document["workspace"]) == ("PASS", 1 << 26)
    assert document["environment"]["tensorrt-rtx-cu13"] in document["version"]


POOLED = """(float[N, 3, 8, 8] x) => (float[N, 3] y) {
    s = Shape <end: int = 1> (x)
    a = Reshape (places, flat)
    g = ReduceMean (x, a)
    t = Concat <axis: int = 0> (s, three)
    y = Reshape (g, t)
}"""


def test_optimize_ends_with_the_word_of_the_parser_that_takes_the_file(call, parse, tmp_path):
    weights = {"places": np.array([[2, 3]]), "flat": np.array([-1]), "three": np.array([3])}
    model = parse(POOLED, weights)
    assert "build-time constant" in check_parser(model).refusal
    onnx.save(model, tmp_path / "m.onnx")
    result = call("optimize", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--method", "none")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("PASS TensorRT's parser takes it (tensorrt-rtx ")


def test_optimize_ends_with_the_words_of_the_parser_that_refuses_the_file(call, parse, tmp_path):
    onnx.save(parse("(float[N, 3, 3] x) => (float[N] y) { [area] y = Det (x) }", {}), tmp_path / "m.onnx")
    arguments = ("optimize", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--method", "none", "--force")
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith("WARN TensorRT's parser does not take it")
    assert last.endswith("Det 'area': there is no Det in TensorRT")
    document = json.loads(call(*arguments, "--json", "-").stdout)
    assert document["tensorrt_parser"]["refusal"] == "Det 'area': there is no Det in TensorRT"


@pytest.fixture
def unbuildable(parse, tmp_path):
    """A file that the parser takes, and that no engine can be built of for images smaller than its kernels."""
    body = "(float[N, 3, H, W] x) => (float[N, 2, A, B] y) { [edges] z = Conv (x, w)\n y = Relu (z) }"
    path = tmp_path / "m.onnx"
    onnx.save(parse(body, {"w": np.ones((2, 3, 5, 5), np.float32)}), path)
    return path


def build_by_hand(call, path, *options):
    output = path.with_name("e.plan")
    return call("build", str(path), "-o", str(output), "--runtime", "tensorrt-rtx", "--target", "sm89", *options)


def test_a_failed_build_ends_with_one_line_after_the_words_of_the_builder(call, unbuildable):
    result = build_by_hand(call, unbuildable, "--shapes", "x:1x3x2x2")
    assert result.exit_code == 4
    *log, error = result.stderr.splitlines()
    assert len(log) == 1
    assert "Error Code 4: API Usage Error (IConvolutionLayer edges: edges: spatial dimension" in log[0]
    assert error.startswith(f"vsfix: error: {unbuildable}: tensorrt-rtx ")
    assert "no engine could be built: Convolution 'edges': spatial dimension of convolution" in error
    assert ".cpp" not in error
    assert "(--shapes, --min-shapes, --max-shapes)" in error
    assert not unbuildable.with_name("e.plan").exists()


@pytest.mark.parametrize("verbose", ["-v", "-vv"])
def test_the_words_of_the_builder_are_said_once_however_much_is_said(call, unbuildable, verbose):
    result = build_by_hand(call, unbuildable, "--shapes", "x:1x3x2x2", verbose)
    assert result.stderr.count("Error Code 4") == 1


@pytest.mark.parametrize("advised", [("--shapes", "x:1x3x8x8"), ("--shapes", "x:1x3x8x8", "--workspace", "512M")])
def test_the_advice_of_a_failed_build_works(call, unbuildable, advised):
    result = build_by_hand(call, unbuildable, "--shapes", "x:1x3x8x8", "--workspace", "1")
    assert (result.exit_code, result.stderr.count("give a larger --workspace, or none")) == (4, 1)
    assert build_by_hand(call, unbuildable, *advised).exit_code == 0


def test_tf32_is_not_promised_where_the_environment_forbids_it(networks, tmp_path, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with pytest.raises(InputError, match=r"NVIDIA_TF32_OVERRIDE=0 is set.*unset it"):
        build_engine(networks["mlp-2"] / "folded.onnx", tmp_path / "e.plan", config(precision="tf32"))
    assert build_engine(networks["mlp-2"] / "folded.onnx", tmp_path / "e.plan", config()).precision.asked is None


DEFAULT_BUILD = """
import sys
import tensorrt_rtx as trt

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)

    def log(self, severity, message):
        print(message)

log = Log()
builder = trt.Builder(log)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
assert trt.OnnxParser(network, log).parse_from_file(sys.argv[1])
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
profile = builder.create_optimization_profile()
profile.set_shape("input", *[(1, 1, 8, 8)] * 3)
config.add_optimization_profile(profile)
assert config.get_flag(trt.BuilderFlag.TF32) and builder.build_serialized_network(network, config)
"""


def test_tensorrt_rtx_itself_drops_tf32_where_the_environment_says_so(networks):
    """What keeps TF32 out of the engines that ONNX Runtime builds; the library reads it once, so in a process alone."""
    command = [sys.executable, "-c", DEFAULT_BUILD, str(networks["mlp-2"] / "folded.onnx")]
    said = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        for environment in (os.environ | {"NVIDIA_TF32_OVERRIDE": "0"}, os.environ)
    ]
    assert ["Disabling TF32" in text for text in said] == [True, False]
