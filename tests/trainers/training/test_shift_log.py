from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from vsfix.trainers.training.shift_log import measure_shift


@pytest.fixture
def network():
    """Two BatchNorms, the second registered first, one that is not run, one without statistics."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.BatchNorm2d(3)
            self.unused = nn.BatchNorm2d(3)
            self.first = nn.BatchNorm2d(2)
            self.conv = nn.Conv2d(2, 3, 3)
            self.batchwise = nn.BatchNorm2d(3, track_running_stats=False)
            self.dropout = nn.Dropout(0.9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.batchwise(self.second(self.dropout(self.conv(self.first(x)).relu())))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network()
        network.first.running_mean.uniform_(-1, 1)
        network.first.running_var.uniform_(0.5, 2)
        network.second.running_var.uniform_(0.01, 1)
        yield network


def test_the_ratio_is_that_of_numpy_in_float64_however_the_images_are_cut(network):
    images = torch.randn(30, 2, 8, 8, generator=torch.Generator().manual_seed(1)) * 3 + 5
    whole = measure_shift(network, [images], 4)
    parts = measure_shift(network, images.split(7), 4)
    network.eval()
    with torch.no_grad():
        second = network.conv(network.first(images)).relu()
    for row, values, layer in zip(whole, (images, second), (network.first, network.second), strict=True):
        real = values.double().numpy().var(axis=(0, 2, 3))
        logs = np.log(real / layer.running_var.double().numpy())
        assert row.shift_ratio == pytest.approx(math.exp(logs.mean()), rel=1e-9)
        assert row.mismatch == pytest.approx(math.exp(np.abs(logs).mean()), rel=1e-9)
    assert [row.batch_norm for row in whole] == ["first", "second"]
    assert [(row.epoch, row.batch_norm) for row in parts] == [(4, "first"), (4, "second")]
    for one, other in zip(whole, parts, strict=True):
        assert one.shift_ratio == pytest.approx(other.shift_ratio, rel=1e-12)


def test_the_network_is_left_as_it_was(network):
    network.first.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measure_shift(network, [torch.randn(4, 2, 8, 8)], 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert (network.training, network.first.training, network.dropout.training) == (True, False, True)
    assert not network.first._forward_pre_hooks


def test_a_channel_without_variance_is_left_out(network):
    images = torch.randn(10, 2, 8, 8, dtype=torch.float32)
    images[:, 1] = 7
    with torch.no_grad():
        network.first.running_var.fill_(2.0)
    (row, _) = measure_shift(network, [images], 1)
    assert row.shift_ratio == pytest.approx(float(images[:, 0].double().var(correction=0)) / 2, rel=1e-6)


def test_a_compiled_network_is_measured_again_and_again(network):
    images = torch.randn(8, 2, 8, 8)
    expected = measure_shift(network, [images], 1)
    network.compile(backend="eager")
    with torch.no_grad():
        network.eval()(images)  # the compiled form of the evaluation is there before the hooks are
    for epoch in (1, 2):
        found = measure_shift(network, [images], epoch)
        assert [row.batch_norm for row in found] == ["first", "second"]
        assert [row.shift_ratio for row in found] == [row.shift_ratio for row in expected]
