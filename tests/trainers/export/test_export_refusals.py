"""Modules that can't be exported: an error of one line that says why, and no file."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.errors import InputError, ModelError
from vsfix.trainers.export.onnx_export import export_onnx


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1).relu() if len(x) == 2 else x.flatten(1).relu()


class Text(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, object]:
        return x, object()


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> None:
        return None


class TwoInputs(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x * mask


class Squeezing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)).squeeze()


class AlwaysOn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5)


class Everything(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 1.0, self.training)


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() if float(x.sum()) > 0 else x


class Exotic(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


class Infinite(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 0


def scripted(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        return torch.jit.script(module)


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Text(), InputError, "returns a object; wrap it"),
        (Nothing(), InputError, "returns a NoneType without a tensor"),
        (TwoInputs(), InputError, "missing a required argument: 'mask'; give an example of each input"),
        (Squeezing(), InputError, "the batch must stay the first axis"),
        (AlwaysOn(), InputError, "the module: dropout is on in eval mode too"),
        (Everything(), InputError, "ratio must lie in"),
        (nn.Sequential(scripted(nn.ReLU())), InputError, "its part '0' is TorchScript; export the Python module"),
        (Infinite(), InputError, "not finite on the example"),
        (nn.Linear(7, 7), ModelError, "Linear fails on an input of float32 .2, 1, 8, 8.: "),
        (nn.Conv2d(1, 1, 3).half(), InputError, r"\.float\(\)"),
        (nn.Linear(8, 8, device="meta"), InputError, r"\.cpu\(\)"),
        (Fixed(), ModelError, "its forward fixes the batch size"),
        (Exotic(), ModelError, "torch.onnx can't convert the module: No ONNX function found"),
        (DataDependent(), ModelError, "torch.export can't trace it"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_can_not_be_exported_is_refused_in_one_line(tmp_path, capfd, module, error, message):
    with pytest.raises(error, match=message) as caught:
        export_onnx(module, torch.randn(2, 1, 8, 8), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert type(caught.value) is error
    assert tuple(capfd.readouterr()) == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("example", [torch.zeros(0, 1, 8, 8), torch.tensor(1.0)])
def test_an_example_that_is_no_batch_is_refused(tmp_path, example):
    with pytest.raises(InputError, match="batch of at least one"):
        export_onnx(nn.ReLU(), example, tmp_path / "m.onnx")
