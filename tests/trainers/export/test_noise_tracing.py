from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.export.noise_tracing import NoiseTracer, tracing_noise
from vsfix.trainers.layers.noise_layers import Uout, drop_path, gaussian_dropout, uout

from .handmade_noise import DropPath


class Calling(nn.Module):
    """One function on the input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def trace(module: nn.Module, *shape: int) -> NoiseTracer:
    module.eval()
    with torch.no_grad(), warnings.catch_warnings(), tracing_noise(module) as tracer:
        warnings.simplefilter("ignore")  # torch's own, on Dropout2d of other ranks
        module(torch.ones(shape))
    return tracer


@pytest.mark.parametrize(
    ("function", "shape", "noise"),
    [
        (lambda x: F.dropout(x, 0.3, False), (2, 3), "dropout:0.3"),
        (lambda x: F.dropout(x, training=False), (2, 3), "dropout:0.5"),
        (lambda x: F.dropout(x, p=0.3, training=False, inplace=True), (2, 3, 4), "dropout:0.3"),
        (lambda x: torch.dropout(x, 0.3, False), (2, 3), "dropout:0.3"),
        (lambda x: torch.dropout(x, p=0.3, train=False), (2, 3), "dropout:0.3"),
        (lambda x: torch.dropout_(x, 0.3, False), (2, 3), "dropout:0.3"),
        (lambda x: F.dropout1d(x, 0.3, False), (2, 3, 4), "feature-dropout:0.3"),
        (lambda x: F.dropout2d(x, 0.3, False), (2, 3, 4, 4), "feature-dropout:0.3"),
        (lambda x: F.dropout3d(x, 0.3, False), (2, 3, 4, 4, 4), "feature-dropout:0.3"),
        (lambda x: torch.feature_dropout(x, 0.3, False), (2, 3, 4), "feature-dropout:0.3"),
        # One value per channel: dropping the channel is dropping the value.
        (lambda x: F.dropout2d(x, 0.3, False), (2, 3), "dropout:0.3"),
        (lambda x: torch.feature_dropout(x, 0.3, False), (2, 3), "dropout:0.3"),
        (lambda x: F.alpha_dropout(x, 0.3, False), (2, 3, 4), "alpha-dropout:0.3"),
        (lambda x: F.alpha_dropout(x, inplace=True), (2, 3), "alpha-dropout:0.5"),
        (lambda x: torch.alpha_dropout(x, 0.3, False), (2, 3), "alpha-dropout:0.3"),
        (lambda x: torch.alpha_dropout_(x, p=0.3, train=False), (2, 3), "alpha-dropout:0.3"),
        (lambda x: F.feature_alpha_dropout(x, 0.3, False), (2, 3), "alpha-dropout:0.3"),
        (lambda x: torch.feature_alpha_dropout_(x, 0.3, False), (2, 3, 4), "feature-alpha-dropout:0.3"),
        (lambda x: drop_path(x, 0.3, False), (2, 3), "drop-path:0.3"),
        (lambda x: drop_path(x, ratio=0.3, training=False), (2, 3, 4), "drop-path:0.3"),
        (lambda x: gaussian_dropout(x, 0.3, False), (2, 3), "gaussian-dropout:0.3"),
        (nn.AlphaDropout(0.3).eval(), (2, 3, 4), "alpha-dropout:0.3"),
        (nn.FeatureAlphaDropout(0.3).eval(), (2, 3, 4, 4), "feature-alpha-dropout:0.3"),
        (lambda x: uout(x, 0.3, False), (2, 3), "uout:0.3"),
        (lambda x: uout(x, beta=0.3, training=False), (2, 3), "uout:0.3"),
        (nn.Dropout1d(0.3).eval(), (2, 3, 4), "feature-dropout:0.3"),
        (nn.Dropout(0.3).eval(), (2, 3, 4), "dropout:0.3"),
    ],
)
def test_every_way_to_call_for_noise_is_seen(function, shape, noise):
    tracer = trace(Calling(function), *shape)
    assert list(tracer.marked.values()) == [Noise.parse(noise)]
    assert tracer.unmarked == []


def drops_channels(function, shape: tuple[int, ...]) -> bool:
    """Whether one draw holds for all positions of one channel of one sample, as torch really does it."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = function(torch.ones(shape), 0.5, True).flatten(2)
    return bool((out == out[:, :, :1]).all()) and not bool((out[0, 0] == out[0]).all())


@pytest.mark.parametrize(
    ("function", "rank"),
    # torch refuses dropout1d of a higher rank.
    [(F.dropout1d, 3), *itertools.product([F.dropout2d, F.dropout3d, torch.feature_dropout], [3, 4, 5])],
)
def test_feature_noise_is_marked_exactly_where_torch_drops_channels(function, rank):
    shape = (6, 16, *[3] * (rank - 2))
    truth = drops_channels(function, shape)
    tracer = trace(Calling(lambda x: function(x, 0.5, False)), *shape)
    assert list(tracer.marked.values()) == ([Noise.parse("feature-dropout:0.5")] if truth else [])
    assert len(tracer.unmarked) == (0 if truth else 1)


@pytest.mark.parametrize("function", [F.feature_alpha_dropout, torch.feature_alpha_dropout])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_feature_alpha_dropout_drops_channels_at_every_rank_that_is_marked(function, rank):
    shape = (6, 16, *[3] * (rank - 2))
    assert drops_channels(function, shape)
    tracer = trace(Calling(lambda x: function(x, 0.5, False)), *shape)
    assert list(tracer.marked.values()) == [Noise.parse("feature-alpha-dropout:0.5")]


def test_noise_that_has_no_marker_is_named():
    tracer = trace(Calling(lambda x: F.dropout1d(x, 0.3, False)), 2, 3)
    assert tracer.marked == {}
    assert tracer.unmarked == ["dropout1d with ratio 0.3 on a tensor of rank 2 in ''"]


def test_noise_made_by_hand_is_marked_downstream_of_its_layer():
    noise = Noise.parse("drop-path:0.1")
    module = nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU(), DropPath(0.1))).eval()
    with torch.no_grad(), tracing_noise(module, {"1.1": noise}) as tracer:
        module(torch.ones(2, 3))
    assert tracer.marked == {"1.1": noise}
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_a_layer_called_twice_has_two_markers_and_each_feeds_what_follows():
    path = DropPath(0.1)
    module = nn.Sequential(path, nn.ReLU(), path).eval()
    x = torch.ones(2, 3)
    with torch.no_grad(), tracing_noise(module, {"0": Noise.parse("drop-path:0.1")}) as tracer:
        program = torch.export.export(module, (x,), strict=False)
    assert list(tracer.marked) == ["0", "0_2"]
    operators = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert [str(target).split(".")[0] for target in operators] == ["onnx_symbolic", "aten", "onnx_symbolic"]


def test_names_come_from_the_layers_and_are_unique():
    shared = Uout(0.1)
    block = nn.Sequential(nn.Dropout(0.2), shared, shared)
    module = nn.Sequential(block, Wrapped())
    assert list(trace(module, 2, 3).marked) == ["0.0", "0.1", "0.1_2", "1.dropout", "1.dropout_2"]


class Wrapped(nn.Module):
    """A module with children that calls the function itself, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.relu(F.dropout(x, 0.1, self.training)), 0.2, self.training)


def test_a_ratio_of_zero_is_no_noise():
    tracer = trace(nn.Sequential(nn.Dropout(0.0), nn.Dropout2d(0.0)), 2, 3, 4, 4)
    assert (tracer.marked, tracer.unmarked) == ({}, [])


def test_batch_norms_that_run_on_stored_statistics_are_counted():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False), nn.ReLU())
    assert trace(module, 4, 3).batch_norms == ["0"]


def test_noise_that_eval_mode_does_not_switch_off_is_an_error_with_its_place():
    module = nn.Sequential(Calling(F.dropout))
    with pytest.raises(InputError, match=r"module '0': dropout is on in eval mode"):
        trace(module, 2, 3)
    assert not module[0]._forward_hooks


def test_outside_of_the_block_nothing_is_seen():
    module = nn.Dropout(0.5)
    tracer = trace(module, 2, 3)
    x = torch.ones(2, 3)
    assert module(x) is x
    assert len(tracer.marked) == 1
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
