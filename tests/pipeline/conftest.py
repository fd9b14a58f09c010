"""A small network in each form that a user may have it in; random weights, since nothing here depends on good ones."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from vsfix.graph_passes.noise import Noise
from vsfix.pipeline.cli import vsfix
from vsfix.pipeline.exporting import export_checkpoint
from vsfix.trainers.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vsfix.trainers.network import NetworkConfig, build_network
from vsfix.trainers.noise_sites import NoiseSites
from vsfix.trainers.preprocessing import Preprocessing
from vsfix.trainers.training_config import TrainingConfig

from .fake_machine import Machine
from .fake_tensorrt import fake_tensorrt


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory) -> Path:
    """A perceptron for the digits, with statistics that are not the fresh ones."""
    network = NetworkConfig("mlp-2", 1, (8, 8), 10, NoiseSites(a=Noise.parse("dropout:0.5")))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = build_network(network).train()
        with torch.no_grad():
            for _ in range(20):
                module(torch.randn(64, 1, 8, 8) + 0.3)
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    preprocessing = Preprocessing(1, (8, 8), (0.3,), (0.37,), tuple("0123456789"))
    training = TrainingConfig("digits", network)
    save_checkpoint(Checkpoint(training, preprocessing, module.state_dict(), {}, {}, ()), path)
    return path


@pytest.fixture(scope="session")
def onnx_path(checkpoint_path, tmp_path_factory) -> Path:
    """The same network, exported."""
    path = tmp_path_factory.mktemp("exported") / "network.onnx"
    export_checkpoint(load_checkpoint(checkpoint_path), path)
    return path


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
    """Puts a stand-in in the place of `tensorrt`, and the timings of builds into a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def put(version, **behaviour):
        library = fake_tensorrt(version, **behaviour)
        monkeypatch.setitem(sys.modules, "tensorrt", library)
        return library

    return put


@pytest.fixture
def machine(monkeypatch, tmp_path) -> Machine:
    """A machine on which stand-ins for a GPU, cuda-python and TensorRT can be installed; the timings of builds stay here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Machine(monkeypatch, tmp_path)
