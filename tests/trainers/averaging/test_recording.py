from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.noise_average.divergence import Meaning
from vsfix.trainers.averaging.module_noise import ModuleNoise
from vsfix.trainers.averaging.module_samples import named_outputs, state_kept, to_array
from vsfix.trainers.averaging.noisy_forward import NoisyForward
from vsfix.trainers.averaging.recording import Recording
from vsfix.trainers.averaging.taps import positions


def record(module, x, noise=None):
    with state_kept(module), torch.no_grad():
        recording = Recording(module)
        noise = noise or ModuleNoise()
        out = NoisyForward(module, noise, recording).run(((x,), {}))
        recording.returned(named_outputs(out), noise.parts)
    return recording, {name: to_array(tensor) for name, tensor in named_outputs(out).items()}


class Softsign(nn.Module):
    def forward(self, z):
        return z / (1 + z.abs())


class Swish(nn.Module):
    def forward(self, z):
        return z * torch.sigmoid(1.3 * z)


class InPlace(nn.Module):
    def forward(self, z):
        return z.mul_(0.5).clamp_(-1, 0.7).add_(0.1)


ACTIVATIONS = [
    *(nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.ELU(), nn.CELU(0.5), nn.SELU(), nn.GELU(), nn.SiLU()),
    *(nn.GELU("tanh"), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.ReLU6(), nn.Hardtanh(), nn.Sigmoid(), nn.Tanh()),
    *(nn.Softplus(), nn.Softshrink(), nn.Hardshrink(), nn.Threshold(0.3, 0.1), nn.PReLU(6, 0.2), nn.PReLU()),
    *(Softsign(), Swish(), InPlace(), nn.Identity()),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda layer: str(layer).replace(" ", ""))
@pytest.mark.parametrize("images", [False, True])
def test_the_region_computes_what_the_activation_does_and_its_slope(activation, images):
    if images and isinstance(activation, nn.PReLU):
        activation = nn.PReLU(activation.num_parameters, 0.2)
    norm = nn.BatchNorm2d(6) if images else nn.BatchNorm1d(6)
    x = torch.randn((8, 6, 3, 3) if images else (8, 6), generator=torch.Generator().manual_seed(0))
    module = nn.Sequential(nn.Dropout(), norm, activation, nn.Dropout())
    (unit,) = record(module, x)[0].units()
    z = np.random.default_rng(0).normal(size=(50, 6))
    value, slope = unit.region.evaluate(z, {})
    leaf = torch.from_numpy(z.copy()).requires_grad_()
    expected = activation.double()(leaf * 1)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    activation.float()
    assert np.allclose(value, expected.detach().numpy(), atol=1e-12)
    assert np.allclose(slope, gradient.numpy(), atol=1e-12)


def test_a_shortcut_that_is_added_is_a_side():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout()
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.dropout(F.relu(self.bn(self.dropout(x)) + x))

    (unit,) = record(Block(), torch.randn(6, 4))[0].units()
    (side,) = unit.region.sides
    z, s = np.random.default_rng(1).normal(size=(2, 9, 4))
    value, slope = unit.region.evaluate(z, {side: s})
    assert np.array_equal(value, np.maximum(z + s, 0))
    assert np.array_equal(slope, (z + s > 0).astype(float))


def test_what_two_values_leave_is_no_region():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(4)
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            z = self.bn(F.dropout(x, 0.5, self.training))
            return self.linear(F.relu(z)) * self.linear(z)

    unit = record(Forked(), torch.randn(6, 4))[0].units()[0]
    assert unit.region.operators == ()
    assert unit.output == unit.key


def test_units_are_what_noise_reaches_and_nothing_else():
    module = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
        *(nn.SiLU(), nn.ConvTranspose2d(6, 5, 2), nn.GELU(), nn.Conv2d(5, 5, 1), nn.Flatten(), nn.Linear(125, 7)),
        *(nn.Tanh(), nn.Linear(7, 3), nn.Softmax(1)),
    )
    units = record(module, torch.randn(4, 1, 8, 8))[0].units()
    assert [unit.name for unit in units] == ["5", "7", "11", "13"]
    assert [unit.is_batch_norm for unit in units] == [True, False, False, False]
    assert [unit.is_last for unit in units] == [False, False, False, True]
    assert [unit.channels for unit in units] == [6, 5, 7, 3]
    assert [unit.axis for unit in units] == [1, 1, -1, -1]


def test_noise_that_a_part_draws_reaches_what_is_behind_it():
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Identity(), nn.BatchNorm1d(4), nn.ReLU())
    x = torch.randn(6, 4)
    assert record(module, x)[0].units() == ()
    units = record(module, x, ModuleNoise(parts=("1",)))[0].units()
    assert [unit.name for unit in units] == ["2"]


@pytest.mark.parametrize(
    ("ends", "meaning", "form"),
    [
        (nn.Softmax(1), Meaning.CLASSES, "probabilities"),
        (nn.LogSoftmax(1), Meaning.CLASSES, "log"),
        (nn.Sigmoid(), Meaning.PROBABILITIES, "probabilities"),
        (nn.Identity(), Meaning.CLASSES, "logits"),
        (nn.Tanh(), Meaning.VALUES, "values"),
        (nn.Sequential(nn.Softmax(1), nn.Dropout(0.0), nn.Unflatten(1, (5, 1))), Meaning.CLASSES, "probabilities"),
    ],
    ids=["softmax", "log-softmax", "sigmoid", "logits", "tanh", "views"],
)
def test_outputs_are_recognised_by_what_ends_them(ends, meaning, form):
    linear = nn.Linear(8, 5)
    with torch.no_grad():
        linear.weight.copy_(
            4 * torch.nn.init.orthogonal_(torch.empty(5, 8), generator=torch.Generator().manual_seed(0))
        )
        linear.weight -= linear.weight.mean(0)
        linear.bias.zero_()
    recording, outputs = record(nn.Sequential(linear, ends), torch.randn(40, 8))
    (kind,) = recording.output_kinds(outputs, None).values()
    assert (kind.meaning, kind.form) == (meaning, form)


def test_the_cost_is_that_of_the_multiplications():
    module = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.Flatten(), nn.Linear(64, 3))
    recording, _ = record(module, torch.randn(5, 2, 4, 4))
    assert recording.cost == 5 * (4 * 16 * 9 + 64 * 3)


@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 1), ((3, 4, 5), 1), ((6, 4, 5, 2), 1), ((3, 7, 4), -1)])
def test_positions_keep_samples_and_channels_apart(shape, axis):
    values = torch.arange(float(np.prod(shape))).reshape(shape)
    found = positions(values, 3, axis, None)
    assert found.shape[::2] == (3, 4)
    moved = np.moveaxis(values.numpy(), axis, -1)  # (N r, *positions, C)
    for sample in range(3):
        own = moved.reshape(3, -1, 4)[sample]
        assert sorted(map(tuple, found[sample])) == sorted(map(tuple, own))
    assert np.array_equal(positions(values, 3, axis, [0]), found[:, :1])
