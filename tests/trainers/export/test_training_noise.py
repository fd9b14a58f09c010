from __future__ import annotations

import math
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.export.training_noise import TrainingNoise, observe_training_noise
from vsfix.trainers.layers.noise_layers import DropPath as VsfixDropPath
from vsfix.trainers.layers.noise_layers import GaussianDropout, Uout

from .handmade_noise import DropPath, HandGaussianDropout, Masked, StochasticDepth, TrainingOnlyDropout


def observe(module: nn.Module, *shape: int) -> TrainingNoise:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on the nesting of recurrent layers
        return observe_training_noise(module, torch.linspace(-1, 1, math.prod(shape)).reshape(shape))


def test_layers_that_make_their_noise_by_hand_are_named_with_it():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), DropPath(0.1), nn.Sequential(HandGaussianDropout(0.2), nn.ReLU()))
    found = observe(module, 2, 1, 6, 6)
    assert dict(found.layers) == {"1": Noise.parse("drop-path:0.1"), "2.0": Noise.parse("gaussian-dropout:0.2")}
    assert found.unknown == ()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.2),
        nn.Dropout2d(0.2),
        nn.AlphaDropout(0.2),
        nn.FeatureAlphaDropout(0.2),
        Uout(0.2),
        VsfixDropPath(0.2),
        GaussianDropout(0.2),
        DropPath(0.0),
        Masked(),
        nn.ReLU(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_noise_functions_show_in_eval_mode_is_not_made_by_hand(layer):
    assert observe(nn.Sequential(layer, nn.BatchNorm2d(3)), 2, 3, 4, 4) == TrainingNoise({}, ())


def test_a_noise_function_that_only_training_calls_is_found():
    assert dict(observe(TrainingOnlyDropout(), 2, 3).layers) == {"": Noise.parse("dropout:0.3")}


class Block(nn.Module):
    """Drops its branch in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.linear(x)
        return x + (branch * torch.empty(len(x), 1).bernoulli_(0.5) / 0.5 if self.training else branch)


class Both(nn.Module):
    """Attention, a recurrent layer, and the same without noise."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1)
        self.clean = nn.MultiheadAttention(4, 2)
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(self.clean(x, x, x)[0] + self.attention(x, x, x)[0])[0]


class Fused(nn.Module):
    """Dropout as an argument of an operator that does more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.1 if self.training else 0.0)


class PythonDraws(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0 if self.training and random.random() < 0.5 else x


class NumpyDraws(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(np.random.rand()) if self.training else x


class TrainingPart(nn.Module):
    """A layer that eval mode never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.noise(x) if self.training else x


class TwoWays(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(x, 0.1, self.training)
        return x * torch.rand_like(x) if self.training else x


class Uncopyable(nn.Module):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("no")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    ("module", "shape", "unknown"),
    [
        (Block(), (2, 3), ["the noise of Block (drawn in its own forward"]),
        (nn.Sequential(Block()), (2, 3), ["the noise of Block '0' (drawn in its own forward"]),
        (Both(), (5, 2, 4), ["MultiheadAttention 'attention' (on the weights", "LSTM 'lstm' (between its layers)"]),
        (nn.Sequential(StochasticDepth(0.5, "batch")), (2, 3, 4), ["StochasticDepth '0' (what shares a draw"]),
        (nn.RReLU(), (2, 3), ["the noise of RReLU ("]),
        (Fused(), (2, 3, 4), ["the noise of Fused ("]),
        (PythonDraws(), (2, 3), ["random numbers of Python or numpy"]),
        (NumpyDraws(), (2, 3), ["random numbers of Python or numpy"]),
        (TrainingPart(), (2, 3), ["Dropout 'noise' (it runs in training mode only)"]),
        (TwoWays(), (2, 3), ["TwoWays (by a noise function and by hand as well)"]),
        (Uncopyable(), (2, 3), ["in training mode (it can't be copied: no)"]),
        (nn.BatchNorm1d(3), (1, 3), ["in training mode (its forward fails there: Expected more than 1 value"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_noise_that_can_not_be_named_is_listed_with_the_reason(module, shape, unknown):
    found = observe(module, *shape)
    assert dict(found.layers) == {}
    assert len(found.unknown) == len(unknown)
    assert all(part in text for part, text in zip(unknown, found.unknown, strict=True))


def test_an_encoder_whose_fast_path_hides_its_dropouts_is_either_seen_or_named():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    assert any("MultiheadAttention 'self_attn'" in text for text in observe(encoder, 2, 3, 8).unknown)


def test_weights_that_a_forward_computes_do_not_stop_the_copy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: the old form is deprecated
        module = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)), DropPath(0.2))
    module(torch.ones(2, 3))
    assert not module[0].weight.is_leaf
    assert observe(module, 4, 3) == TrainingNoise({"1": Noise.parse("drop-path:0.2")}, ())


def test_a_layer_that_is_called_twice_is_one_layer():
    shared = DropPath(0.3)
    found = observe(nn.Sequential(shared, nn.ReLU(), shared), 2, 3, 4)
    assert dict(found.layers) == {"0": Noise.parse("drop-path:0.3")}


class Counting(DropPath):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


def test_the_module_and_every_random_generator_stay_as_they_are():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Counting(0.5), nn.Dropout(0.5)).train()
    module[3].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    observe(module, 4, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert (module.training, module[3].training, module[2].calls) == (True, False, 0)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), str(np.random.get_state())) == states[1:]
