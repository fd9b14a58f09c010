from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vsfix.graph_passes.noise.noise import Noise, NoiseKind
from vsfix.trainers.export.noise_identification import identify_noise

from . import handmade_noise as handmade

SHAPES = {2: (4, 6), 3: (4, 6, 5), 4: (4, 6, 5, 5)}


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def identify(layer: nn.Module, rank: int):
    return identify_noise(layer, [torch.randn(SHAPES[rank]).relu()])


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize(
    ("layer", "noise"),
    [
        (handmade.DropPath(0.1), "drop-path:0.1"),
        (handmade.DropPath(0.1 / 11), "drop-path:0.0090909"),
        (handmade.FloorDropPath(0.3), "drop-path:0.3"),
        (handmade.StochasticDepth(0.4, "row"), "drop-path:0.4"),
        (handmade.HandDropout(0.35), "dropout:0.35"),
        (handmade.HandGaussianDropout(0.2), "gaussian-dropout:0.2"),
        (handmade.HandUout(0.3), "uout:0.3"),
        (handmade.HandUout(1.0), "uout:1"),
        (handmade.TrainingOnlyDropout(), "dropout:0.3"),
        (nn.Dropout(0.25), "dropout:0.25"),
    ],
)
def test_the_kind_and_the_parameter_are_found(layer, noise, rank):
    found = identify(layer, rank)
    assert found.reason == ""
    assert found.noise is not None
    assert found.noise.kind is Noise.parse(noise).kind
    assert found.noise.value == pytest.approx(Noise.parse(noise).value, abs=1e-7)


def test_one_draw_for_a_channel_is_feature_dropout_where_a_channel_is_more_than_an_element():
    layer = handmade.HandDropout(0.3, channels=True)
    assert [identify(layer, rank).noise for rank in SHAPES] == [
        Noise(NoiseKind.DROPOUT, 0.3),
        Noise(NoiseKind.FEATURE_DROPOUT, 0.3),
        Noise(NoiseKind.FEATURE_DROPOUT, 0.3),
    ]


def test_a_parameter_that_the_layer_does_not_hold_is_measured():
    layer = handmade.HandGaussianDropout(0.2)
    layer.rate = torch.tensor(0.2)
    found = identify(layer, 4).noise
    assert found is not None
    assert found.value == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (handmade.StochasticDepth(0.4, "batch"), "what shares a draw"),
        (handmade.DropPath(0.3, scale_by_keep=False), "changes the mean"),
        (handmade.LockedDropout(), "what shares a draw"),
        (handmade.TokenDropout(), "what shares a draw"),
        (handmade.BlockDropout(), "depend on each other"),
        (handmade.GaussianNoise(), "values of its input"),
        (handmade.LargestFirst(), "values of its input"),
        (handmade.TwoScales(), "neither 0 and 1/p"),
        (nn.AlphaDropout(0.2), "values of its input"),
        (nn.RReLU(), "values of its input"),
        (nn.Linear(6, 6), "it can't be tried out"),
        (nn.Flatten(), "one tensor of the shape of its input"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_noise_of_no_known_kind_is_refused_with_the_reason(layer, reason):
    found = identify(layer, 4)
    assert found.noise is None
    assert reason in found.reason


def test_draws_without_an_effect_are_no_noise():
    found = identify(handmade.Masked(), 3)
    assert (found.noise, found.reason) == (None, "")


def test_calls_that_make_different_noise_are_refused():
    found = identify_noise(handmade.HandDropout(0.3, channels=True), [torch.randn(4, 6), torch.randn(4, 6, 5)])
    assert found.noise is None
    assert "differs between its calls" in found.reason


class OnlyOnRandomNumbers(handmade.HandDropout):
    """Drops by the sample as soon as a value is large."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and bool(x.max() > 100):
            return x * torch.empty(len(x), 1, 1, 1).bernoulli_(0.5) / 0.5
        return super().forward(x)


def test_another_noise_on_the_real_input_is_refused():
    x = torch.randn(32, 6, 5, 5)
    x[0, 0, 0, 0] = math.pi * 100
    assert "real input" in identify_noise(OnlyOnRandomNumbers(0.3), [x]).reason
    assert identify_noise(OnlyOnRandomNumbers(0.3), [x / 100]).noise == Noise(NoiseKind.DROPOUT, 0.3)
