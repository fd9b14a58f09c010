"""Noise that is no layer in eval mode: what only the training mode shows, and what is identified by its draws."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.io.model_file import import_graph, read_metadata, read_model
from vsfix.graph_passes.noise.marker import EXPORT_METADATA_KEY, read_marker
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.export.onnx_export import export_onnx

from .handmade_noise import DropPath


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class InPlace(nn.Module):
    """Noise whose result nothing uses, but which changes its input in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.linear(x.flatten(1))
        F.dropout(hidden, 0.3, self.training, inplace=True)
        return hidden


class Chosen(nn.Module):
    """Noise that is drawn always and used in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noisy = self.drop(x)
        return self.bn(noisy if self.training else x)


@pytest.mark.long
@pytest.mark.parametrize("module", [InPlace(), Chosen()], ids=lambda module: type(module).__name__)
def test_noise_that_only_eval_mode_cuts_off_is_named(tmp_path, caplog, module):
    result = export_onnx(module, torch.randn(3, 1, 8, 8), tmp_path / "m.onnx")
    assert result.markers == ()
    (unmarked,) = result.unmarked
    assert "in training mode only" in unmarked
    assert EXPORT_METADATA_KEY not in read_metadata(read_model(result.path))
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(messages) == 1


class Handmade(nn.Module):
    """A residual network whose only noise is stochastic depth that eval mode does not show."""

    def __init__(self, path: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.path = path
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(x + self.path(self.conv(x)))


def test_a_file_whose_handmade_noise_is_all_identified_claims_to_show_it_all(tmp_path):
    module = Handmade(DropPath(0.2)).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    example, state = torch.randn(3, 1, 8, 8), torch.get_rng_state()
    result = export_onnx(module, example, tmp_path / "m.onnx")
    assert result.markers == (("path", Noise.parse("drop-path:0.2")),)
    assert result.unmarked == ()
    model = read_model(result.path)
    assert read_metadata(model) == {EXPORT_METADATA_KEY: "1"}
    (marker,) = [node for node in import_graph(model).nodes if read_marker(node)]
    assert (marker.i().op, marker.o().op) == ("Conv", "Add")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
