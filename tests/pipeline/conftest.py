"""A small network in each form that a user may have it in, trained for a moment on the digits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from tests.digits_checkpoint import digits_checkpoint
from tests.pipeline.tensorrt.fake_machine import Machine
from tests.pipeline.tensorrt.fake_tensorrt import fake_tensorrt
from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, as_measured, measure
from vsfix.graph_passes.noise.noise import Noise
from vsfix.pipeline.cli.main import vsfix
from vsfix.trainers.export.exporting import export_checkpoint
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig
from vsfix.trainers.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory) -> Path:
    """A perceptron for the digits, whose statistics are true under its noise; its R is 0.3 to 0.5, so that `auto` keeps it."""
    network = NetworkConfig("mlp-2", 1, (8, 8), 10, NoiseSites(a=Noise.parse("dropout:0.5")))
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    save_checkpoint(digits_checkpoint(network), path)
    return path


@pytest.fixture(scope="session")
def onnx_path(checkpoint_path, tmp_path_factory) -> Path:
    """The trained network, exported."""
    path = tmp_path_factory.mktemp("exported") / "network.onnx"
    export_checkpoint(load_checkpoint(checkpoint_path), path)
    return path


@pytest.fixture
def settled(residual, open_model) -> onnx.ModelProto:
    """`residual` with the statistics that it has under its noise, as training leaves them; R is 10 on `images`."""
    graph = import_graph(residual)
    x = np.random.default_rng(1).normal(0.3, 1.2, (400, 3, 8, 8)).astype(np.float32)
    under_noise = measure(graph, [{"x": x}], open_model, MeasurementConfig(["bn1", "bn2", "bn3"], noise_seed=0))
    for batch_norm in find_batch_norms(graph):
        batch_norm.with_statistics(*as_measured(batch_norm, under_noise[batch_norm.name]))
    return export_model(graph, residual)


@pytest.fixture
def npz_path(tmp_path) -> Path:
    """Forty inputs with labels."""
    rng = np.random.default_rng(3)
    path = tmp_path / "inputs.npz"
    np.savez(path, input=rng.normal(0, 1, (40, 1, 8, 8)).astype(np.float32), labels=rng.integers(0, 10, 40))
    return path


@pytest.fixture
def call():
    """Runs `vsfix` in this process."""

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(vsfix, [str(argument) for argument in arguments], prog_name="vsfix")

    return invoke


@pytest.fixture
def install_tensorrt(monkeypatch, tmp_path):
    """Puts a fake in the place of `tensorrt`, and the timings of builds into a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def put(version, **behaviour):
        library = fake_tensorrt(version, **behaviour)
        monkeypatch.setitem(sys.modules, "tensorrt", library)
        return library

    return put


@pytest.fixture
def machine(monkeypatch, tmp_path) -> Machine:
    """A machine on which fakes of a GPU, cuda-python and TensorRT can be installed; the timings of builds stay here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Machine(monkeypatch, tmp_path)
