"""Every architecture of the project, damaged, repaired, folded and cast, compiled by TensorRT-RTX for every GPU it names.

No GPU is needed: the builder runs here, and what the parser made of the weights is read back and held against float64.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from vsfix.graph_passes.errors import MissingComponentError
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_model, write_model
from vsfix.graph_passes.ir.graph_pass import PassPipeline
from vsfix.graph_passes.ir.remove_identities import RemoveIdentities
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.precision.precision import stated_precision
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.pipeline.building.build_config import BuildConfig
from vsfix.pipeline.building.building import build_engine
from vsfix.pipeline.casting.casting import cast_model
from vsfix.pipeline.casting.quantization import quantize_model
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions
from vsfix.trainers.export.onnx_export import export_onnx
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig, build_network

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed; run: pip install 'vsfix[rtx]'")

NETWORKS = (  # those of benchmarks/ladder.py, and what of the families they leave out
    ("preresnet-20", "dropout:0.5", "a"),
    ("preresnet-20", "dropout:0.5", "b"),
    ("preresnet-20", "dropout:0.5", "last"),
    ("preresnet-20", "uout:0.1", "a"),
    ("preresnet-20", None, "none"),
    ("preresnet-11-bottleneck", "dropout:0.5", "a"),
    ("wrn-16-1", "dropout:0.5", "b"),
    ("wrn-10-2", "dropout:0.5", "a"),
    ("densenet-22-8", "dropout:0.5", "b"),
    ("resnext-11-4x4d", "dropout:0.5", "a"),
    ("mlp-5", "dropout:0.5", "a"),
)
TARGETS = ("sm80", "sm86", "sm89", "sm120")
SHAPES = ShapeOptions(None, "input:1x1x28x28", "input:8x1x28x28", "input:64x1x28x28")


ARCHITECTURES = [network for network in NETWORKS if network[1:] in (("dropout:0.5", "a"), ("dropout:0.5", "b"))][1:]
QUICK = ("mlp-5", "dropout:0.5", "a")
names = pytest.mark.parametrize(
    "network",
    [network if network == QUICK else pytest.param(network, marks=pytest.mark.long) for network in NETWORKS],
    ids=lambda network: " ".join(map(str, network)),
)


@cache
def repair_of(network: tuple[str, str | None, str]):
    """The repair of a network whose statistics are those of runs with the noise on, and the images of the repair."""
    model, noise, site = network
    config = NetworkConfig(model, 1, (28, 28), 10, NoiseSites(**{site: Noise.parse(noise)} if noise else {}))
    images = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(1)) + 0.2
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = build_network(config).train()
        with torch.no_grad():
            for _ in range(4):
                module(images)
    with TemporaryDirectory() as folder:
        path = Path(folder, "m.onnx")
        export_onnx(module.eval(), images[:2], path)
        exported = read_model(path)
    inputs = {"input": images[:32].numpy()}
    return repair_model(exported, [inputs], open_for_small_runs, RepairConfig(method="paired")), inputs


@names
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp16", 2.0**-9), ("bf16", None)])
def test_the_repaired_network_builds_for_every_target_with_its_weights(network, tmp_path, precision, tolerance):
    repair, inputs = repair_of(network)
    model = repair.model
    if precision != "fp32":
        model = cast_model(model, precision, inputs, open_for_small_runs).model
    write_model(model, tmp_path / "m.onnx", force=False)
    assert stated_precision(import_graph(model)) == precision
    assert not any(node.op_type == "Dropout" for node in model.graph.node)
    config = BuildConfig("tensorrt-rtx", SHAPES, TARGETS, precision=precision)
    report = build_engine(tmp_path / "m.onnx", tmp_path / "e.plan", config)
    assert report.targets == TARGETS
    assert report.plan["bytes"] == (tmp_path / "e.plan").stat().st_size
    if tolerance is None:  # TensorRT-RTX shows no bfloat16 values to Python
        assert (report.read_back.count("FAIL"), report.read_back.status) == (0, "SKIP")
        return
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    assert report.read_back.status == "PASS"
    assert report.read_back.count("SKIP") == 0
    assert report.read_back.count("PASS", "CONVOLUTION") >= convolutions
    assert report.read_back.largest_error <= tolerance


@pytest.mark.long
@pytest.mark.parametrize(("precision", "targets"), [("int8", TARGETS), ("fp8", ("sm89", "sm120"))])
@pytest.mark.parametrize("network", ARCHITECTURES, ids=lambda network: network[0])
def test_in_eight_bits_it_builds_for_every_target_that_has_them(network, tmp_path, precision, targets):
    repair, inputs = repair_of(network)
    graph = import_graph(repair.unfolded)
    PassPipeline([RemoveMarkers(), RemoveIdentities(), FoldBatchNorm(forward=False)])(graph)
    try:
        quantized = quantize_model(export_model(graph, repair.unfolded), precision, [inputs], open_for_small_runs)
    except MissingComponentError as error:
        pytest.skip(str(error))
    write_model(quantized.model, tmp_path / "m.onnx", force=False)
    config = BuildConfig("tensorrt-rtx", SHAPES, targets, precision=precision)
    report = build_engine(tmp_path / "m.onnx", tmp_path / "e.plan", config)
    operators = [node.op_type for node in quantized.model.graph.node]
    assert quantized.report.layers[precision] >= 3
    assert report.precision.network["QUANTIZE"] == {precision.upper(): operators.count("QuantizeLinear")}
    assert report.read_back.count("PASS", "CONSTANT") >= quantized.report.layers[precision]
    assert (report.read_back.status, report.read_back.count("SKIP")) == ("PASS", 0)
    assert report.read_back.largest_error <= 1e-6


@names
def test_the_networks_were_damaged_and_are_repaired(network):
    """Else the builds above would compile something else than what is deployed."""
    repair, _ = repair_of(network)
    _, noise, site = network
    changed = [row.shift for row in repair.report.batch_norms if row.repaired]
    if noise is None or site == "last":
        assert changed == []
    elif noise == "dropout:0.5":
        assert len(changed) >= 3
        assert min(changed) < 0.8
