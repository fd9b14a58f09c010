from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.export.noise_tracing import tracing_noise
from vsfix.trainers.layers.noise_layers import (
    DropPath,
    GaussianDropout,
    Uout,
    drop_path,
    gaussian_dropout,
    make_noise_layer,
    uout,
)

NOISES = [
    "dropout:0.5",
    "dropout:0.1",
    "feature-dropout:0.3",
    "gaussian-dropout:0.3",
    "drop-path:0.2",
    "uout:0.1",
    "uout:1",
    "uout-bernoulli:0.2",
    "uout-gaussian:0.2",
]
ALPHA = ["alpha-dropout:0.3", "feature-alpha-dropout:0.3"]
SAMPLES = 200_000


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def factors(layer: nn.Module) -> torch.Tensor:
    """Independent draws of n = X / x; one element for each sample serves the layers that share a draw."""
    return layer.train()(torch.ones(SAMPLES, 1, 1, 1, dtype=torch.float64)).flatten()


def standardized_errors(layer: nn.Module, noise: Noise) -> tuple[float, float]:
    """The errors of mean and variance of the factors against 1 and Var n, in standard errors of the estimates."""
    n = factors(layer)
    squares = (n - 1) ** 2
    mean_error = (n.mean() - 1) / (n.std() / math.sqrt(SAMPLES))
    variance_error = (squares.mean() - noise.variance) / max(float(squares.std()), 1e-12) * math.sqrt(SAMPLES)
    if squares.std() < 1e-12:  # ratio 0.5 gives squares of exactly 1 for every draw
        variance_error = (squares.mean() - noise.variance) * 1e12
    return float(mean_error), float(variance_error)


@pytest.mark.parametrize("text", NOISES)
def test_the_noise_is_unbiased_and_has_its_variance(text):
    noise = Noise.parse(text)
    mean_error, variance_error = standardized_errors(make_noise_layer(noise), noise)
    assert abs(mean_error) < 4
    assert abs(variance_error) < 4


def test_half_the_width_is_seen_as_the_mistake_that_it_is():
    noise = Noise.parse("uout:0.1")
    _, variance_error = standardized_errors(Uout(0.05), noise)
    assert abs(variance_error) > 100


def test_a_bias_of_a_thousandth_is_seen():
    noise = Noise.parse("uout:0.1")
    mean_error, _ = standardized_errors(nn.Sequential(Uout(0.1), Scaled()), noise)
    assert abs(mean_error) > 4


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.001


def test_uout_stays_within_its_bounds_and_reaches_them():
    n = factors(Uout(0.1))
    assert 0.9 <= n.min() < 0.9001
    assert 1.0999 < n.max() <= 1.1


@pytest.mark.parametrize("text", [*NOISES, *ALPHA])
def test_eval_mode_is_the_identity_bit_for_bit(text):
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(make_noise_layer(Noise.parse(text)).eval()(x), x)


def test_no_noise_is_the_identity_in_training_too():
    x = torch.randn(4, 3)
    assert torch.equal(make_noise_layer(None).train()(x), x)


def test_feature_dropout_takes_or_leaves_whole_channels():
    n = make_noise_layer(Noise.parse("feature-dropout:0.5")).train()(torch.ones(50, 20, 4, 4))
    assert torch.equal(n, n[:, :, :1, :1].expand_as(n))


def test_drop_path_takes_or_leaves_whole_samples():
    n = make_noise_layer(Noise.parse("drop-path:0.5")).train()(torch.ones(50, 20, 4, 4))
    assert torch.equal(n, n[:, :1, :1, :1].expand_as(n))
    assert n.unique().tolist() == [0, 2]


def test_gaussian_dropout_is_normal():
    z = (factors(GaussianDropout(0.3)) - 1) / math.sqrt(0.3 / 0.7)
    assert float((z**3).mean()) == pytest.approx(0, abs=0.05)
    assert float((z**4).mean()) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("text", [*NOISES, *ALPHA])
def test_the_layer_of_a_kind_is_exported_as_that_kind(text):
    layer = make_noise_layer(Noise.parse(text)).eval()
    with torch.no_grad(), tracing_noise(layer) as tracer:
        layer(torch.ones(2, 3, 4, 4))
    assert list(tracer.marked.values()) == [Noise.parse(text)]


@pytest.mark.parametrize("layer", [DropPath, GaussianDropout])
@pytest.mark.parametrize("function", [drop_path, gaussian_dropout])
def test_a_ratio_outside_its_range_is_refused(layer, function):
    with pytest.raises(InputError, match="drop ratio"):
        layer(1.0)
    with pytest.raises(InputError, match="drop ratio"):
        function(torch.ones(2), -0.1, training=True)


def test_gradcheck_accepts_uout_with_a_fixed_draw():
    def fixed(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return uout(x, 0.3, training=True)

    assert torch.autograd.gradcheck(fixed, torch.randn(7, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", [uout, drop_path, gaussian_dropout])
def test_shape_dtype_and_memory_layout_are_kept(dtype, function):
    x = torch.randn(2, 3, 4, 5).to(dtype).to(memory_format=torch.channels_last)
    out = function(x, 0.1, training=True)
    assert (out.shape, out.dtype) == (x.shape, dtype)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("beta", [0, -0.1, 1.01, math.nan])
def test_a_half_width_outside_its_range_is_refused(beta):
    with pytest.raises(InputError, match="beta must lie"):
        Uout(beta)
    with pytest.raises(InputError, match="beta must lie"):
        uout(torch.ones(2), beta, training=True)


def test_uout_shows_itself_to_a_function_mode():
    class Spy(TorchFunctionMode):
        seen = None

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is uout:
                Spy.seen = args[1:]
            return func(*args, **(kwargs or {}))

    with Spy():
        Uout(0.25).eval()(torch.ones(2))
    assert Spy.seen == (0.25, False, "uniform")


def test_a_printed_layer_says_its_half_width():
    assert repr(Uout(0.25)) == "Uout(beta=0.25, form=uniform)"
    assert repr(DropPath(0.25)) == "DropPath(ratio=0.25)"


@pytest.mark.parametrize(("form", "levels"), [("uniform", None), ("bernoulli", {0.8, 1.2}), ("gaussian", None)])
def test_each_form_of_uout_has_its_own_distribution(form, levels):
    n = factors(Uout(0.2, form)).float()
    kurtosis = float(((n - 1) ** 4).mean() / ((n - 1) ** 2).mean() ** 2)
    assert kurtosis == pytest.approx({"uniform": 1.8, "bernoulli": 1.0, "gaussian": 3.0}[form], abs=0.03)
    assert levels is None or {round(float(value), 6) for value in n.unique()} == levels


@pytest.mark.parametrize("form", ["uniform", "bernoulli", "gaussian"])
def test_the_gradient_of_uout_is_the_factor_that_the_forward_drew(form):
    x = torch.full((50, 20), 2.0, requires_grad=True)
    y = uout(x, 0.3, True, form)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach() / 2)
    assert len(gradient.unique()) > 1


def test_a_form_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="must be one of uniform, bernoulli, gaussian"):
        Uout(0.1, "cauchy")


@pytest.mark.parametrize("form", ["uniform", "bernoulli", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_uout_is_unbiased_in_half_precision_too(dtype, form):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = uout(torch.ones(4_000_000, dtype=dtype), 0.1, True, form)
    assert found.dtype == dtype
    assert float(found.double().mean()) == pytest.approx(1, abs=3e-4)
