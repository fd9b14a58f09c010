from __future__ import annotations

import sys

import torch

from vsfix.graph_passes.io.model_file import read_model
from vsfix.pipeline.data.calibration import read_preprocessing
from vsfix.trainers.export.exporting import export_checkpoint
from vsfix.trainers.training.checkpoint import load_checkpoint

SOURCE = """
from torch import nn

def network():
    return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.25), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
"""


def test_a_checkpoint_carries_its_preprocessing_and_its_noise(checkpoint_path, tmp_path):
    checkpoint = load_checkpoint(checkpoint_path)
    result = export_checkpoint(checkpoint, tmp_path / "m.onnx", opset=17)
    assert (result.opset, len(result.batch_norms), len(result.markers)) == (17, 2, 2)
    assert read_preprocessing(read_model(tmp_path / "m.onnx")) == checkpoint.preprocessing


def test_a_factory_without_weights_is_exported_with_a_warning(call, tmp_path, monkeypatch):
    (tmp_path / "exported_network.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    line = ("export", "exported_network:network", "--input-shape", "6", "-o", tmp_path / "m.onnx", "--force")
    assert call(*line).stdout.startswith("WARN no --weights: the file holds those that exported_network:network gave")
    module = sys.modules.pop("exported_network")
    torch.save(module.network().state_dict(), tmp_path / "weights.pt")
    assert "WARN" not in call(*line, "--weights", tmp_path / "weights.pt").stdout
    sys.modules.pop("exported_network")
