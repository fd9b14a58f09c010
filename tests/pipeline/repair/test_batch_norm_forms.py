"""BatchNorms that exporters write as something else: frozen ones, and those of Keras on torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import ModelError
from vsfix.pipeline.inspection.preparation import prepare_model
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.trainers.export.onnx_conversion import quiet_exporter

C = 5


class Written(nn.Module):
    """A BatchNorm whose parameters are buffers, in the arithmetic of a framework."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("scale", "offset", "mean", "variance"):
            self.register_buffer(name, torch.rand(C) + 0.5)

    def rows(self) -> tuple[torch.Tensor, ...]:
        return tuple(value.reshape(1, -1, 1, 1) for value in self.buffers())


class Frozen(Written):
    """As torchvision writes one whose statistics training leaves as they are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, offset, mean, variance = self.rows()
        gain = scale * (variance + 1e-5).rsqrt()
        return x * gain + (offset - mean * gain)


class Keras(Written):
    """As Keras writes it on torch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, offset, mean, variance = self.rows()
        return x.subtract(mean).mul_(variance.add(1e-3).rsqrt_().mul(scale)).add_(offset)


def exported(tmp_path, layer: nn.Module, *, optimize: bool) -> tuple[nn.Module, torch.Tensor, onnx.ModelProto]:
    """A network with the layer in it, inputs, and its file."""
    net = nn.Sequential(nn.Conv2d(3, C, 3, bias=False), layer, nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)).eval()
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    with quiet_exporter():
        torch.onnx.export(net, (x,), tmp_path / "f.onnx", dynamo=True, optimize=optimize, verbose=False)
    return net, x, onnx.load(tmp_path / "f.onnx")


@pytest.mark.parametrize(("layer", "optimize"), [(Frozen, True), (Keras, True), (Keras, False)])
def test_it_is_folded_into_the_convolution(tmp_path, open_model, layer, optimize):
    torch.manual_seed(0)
    net, x, model = exported(tmp_path, layer(), optimize=optimize)
    result = repair_model(model, [], open_model, RepairConfig(method="none"))
    assert [node.op_type for node in result.model.graph.node][:2] == ["Conv", "Relu"]
    with open_model(result.model) as runner:
        (found,) = runner.run({model.graph.input[0].name: x.numpy()}).values()
    np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_frozen_one_is_nothing_to_export_again(tmp_path):
    _, _, model = exported(tmp_path, Frozen(), optimize=True)
    with pytest.raises(ModelError, match=r"as a frozen BatchNorm is.*--noise.*--method none") as caught:
        prepare_model(model)
    assert "export" not in str(caught.value)


def test_what_keras_merged_is_named_and_the_remedy_keeps_the_statistics(tmp_path):
    layer = Keras()
    _, _, merged = exported(tmp_path, layer, optimize=True)
    with pytest.raises(ModelError, match=r"merged into its scale.*KERAS_BACKEND=torch.*optimize=False"):
        prepare_model(merged)
    _, _, kept = exported(tmp_path, layer, optimize=False)
    (batch_norm,) = find_batch_norms(prepare_model(kept).graph)
    np.testing.assert_array_equal(batch_norm.mean, layer.mean.numpy())
    np.testing.assert_array_equal(batch_norm.variance, layer.variance.numpy())
    assert batch_norm.epsilon == pytest.approx(1e-3)
