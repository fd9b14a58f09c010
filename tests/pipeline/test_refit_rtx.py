"""TensorRT-RTX's own parser, which needs no GPU, knows the weights of a refit by the names of the file."""

from __future__ import annotations

import pytest
import torch

from vsfix.graph_passes.model_file import read_model
from vsfix.graph_passes.noise import Noise
from vsfix.pipeline.backends.tensorrt_library import open_library
from vsfix.pipeline.refit_form import parse_refit_form, take_refit_form
from vsfix.trainers.network import NetworkConfig, build_network
from vsfix.trainers.noise_sites import NoiseSites
from vsfix.trainers.onnx_export import export_onnx

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed; run: pip install 'vsfix[rtx]'")


@pytest.fixture(params=["preresnet-8", "densenet-10-4", "mlp-2"])
def exported(request, tmp_path):
    """A network as exported, BatchNorms and markers kept."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = build_network(NetworkConfig(request.param, 1, (8, 8), 10, NoiseSites(a=Noise.parse("dropout:0.3"))))
    export_onnx(module.eval(), torch.randn(2, 1, 8, 8), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_every_weight_of_a_refit_can_be_marked_and_no_statistic_can(exported):
    form = take_refit_form(exported, read_model(exported))
    library = open_library("tensorrt-rtx")
    _, network, _ = parse_refit_form(library, exported, form).handles
    assert len(form.weights) >= 4
    assert [name for name in form.weights if not network.mark_weights_refittable(name)] == []
    original = read_model(exported)
    _, network, _ = library.parse(exported, original).handles
    statistics = [tensor.name for tensor in original.graph.initializer if "running_" in tensor.name]
    assert statistics
    assert [name for name in statistics if network.mark_weights_refittable(name)] == []


def test_without_a_gpu_no_refittable_engine_is_built_and_nothing_is_left(call, onnx_path, tmp_path):
    arguments = ("--runtime", "tensorrt-rtx", "--target", "sm89", "--shapes", "input:1x1x8x8", "--refit")
    result = call("build", onnx_path, "-o", tmp_path / "e.plan", *arguments)
    if result.exit_code == 0:
        pytest.skip("there is a GPU here, and TensorRT-RTX builds refittable engines")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "builds a refittable engine on a machine with an NVIDIA GPU and driver only" in result.stderr
    assert list(tmp_path.iterdir()) == []
