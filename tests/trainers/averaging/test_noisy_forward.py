from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.trainers.averaging.small_modules import assert_same_state, averaged, friedman, regressor, state, train
from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.averaging.noisy_forward import noise_averaged
from vsfix.trainers.layers.noise_layers import DropPath, GaussianDropout, Uout


@pytest.fixture(scope="module")
def module():
    return train(regressor(), 60)


@pytest.fixture(scope="module")
def x():
    return friedman(24, 3)[0]


def test_inside_the_block_the_module_is_its_average(module, x):
    with noise_averaged(module, draws=400):
        found = module(x)
    expected = averaged(module, x, 400)
    with torch.no_grad():
        deployed = module(x)
    spread = (averaged(module, x, 1) - expected).square().mean().sqrt()
    assert (found - expected).square().mean().sqrt() < 4 * spread / 400**0.5
    assert (deployed - expected).square().mean().sqrt() > 4 * spread / 400**0.5


def test_it_is_the_mean_of_the_single_draws(module, x):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module
            self.seen = []

        def forward(self, x):
            y = self.inner(x)
            self.seen.append(y.detach().clone())
            return y

    counting = Counting().eval()
    with noise_averaged(counting, draws=5):
        counting(x)  # looks at the noise in a copy first
        counting.seen.clear()
        found = counting(x)
    assert len(counting.seen) == 5
    assert not torch.equal(counting.seen[0], counting.seen[1])
    assert torch.allclose(found, torch.stack(counting.seen).mean(0), atol=1e-6)


def test_a_sample_has_the_same_noise_in_every_batch(module, x):
    with noise_averaged(module, draws=3):
        assert torch.allclose(module(x)[5:9], module(x[5:9]), atol=1e-6)
        assert torch.allclose(module(x.flip(0)).flip(0), module(x), atol=1e-6)


def test_seeds_are_other_draws(module, x):
    found = []
    for seed in (0, 0, 1):
        with noise_averaged(module, draws=2, seed=seed):
            found.append(module(x))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_without_noise_the_module_is_what_it_was(x):
    module = train(regressor(0.0), 20)
    with torch.no_grad():
        expected = module(x)
    with noise_averaged(module, draws=4):
        assert torch.allclose(module(x), expected, atol=1e-6)


@pytest.mark.parametrize("fails", [False, True], ids=["left", "failed"])
def test_everything_is_put_back_at_the_end(module, x, fails):
    twin = copy.deepcopy(module).train()
    before = state(twin)

    def use():
        with noise_averaged(twin, draws=2):
            twin(x)
            assert not twin.training
            if fails:
                twin(x[:, :3])

    if fails:
        with pytest.raises(RuntimeError):
            use()
    else:
        use()
    assert_same_state(twin, before)


def test_the_gradient_is_that_of_the_average(module, x):
    x = x.clone().requires_grad_()
    with noise_averaged(module, draws=4):
        module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_outputs_of_any_form_are_averaged_one_by_one(x):
    class Many(nn.Module):
        def forward(self, x, *, twice=False):
            y = F.dropout(x, 0.5, self.training)
            return {"y": (y * 2 if twice else y, (y > 0).sum()), "rows": len(x)}

    module = Many()
    with noise_averaged(module, draws=200):
        found = module(x, twice=True)
    assert torch.allclose(found["y"][0], 2 * x, atol=1.0)
    assert (found["y"][0] - 2 * x).mean().abs() < 0.05
    assert found["y"][1].dtype is torch.int64
    assert found["rows"] == 24


class HandmadeDropPath(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full((len(x), 1), 0.75)) / 0.75


class HandmadePair(nn.Module):
    """Noise of no kind that has a name: two neighbours share a draw."""

    def forward(self, x):
        if not self.training:
            return x
        pairs = torch.bernoulli(torch.full((len(x), x.shape[1] // 2), 0.5)) / 0.5
        return x * pairs.repeat_interleave(2, 1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("layer", "noise"),
    [
        (nn.Dropout(0.4), Noise.parse("dropout:0.4")),
        (nn.AlphaDropout(0.3), Noise.parse("alpha-dropout:0.3")),
        (Uout(0.5), Noise.parse("uout:0.5")),
        (Uout(0.5, "gaussian"), Noise.parse("uout-gaussian:0.5")),
        (DropPath(0.3), Noise.parse("drop-path:0.3")),
        (GaussianDropout(0.3), Noise.parse("gaussian-dropout:0.3")),
        (HandmadeDropPath(), Noise.parse("drop-path:0.25")),
        (HandmadePair(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_noise_layer_has_its_own_mean_and_variance(layer, noise):
    module = nn.Sequential(layer, nn.Identity())
    x = torch.linspace(0.5, 2, 400).reshape(40, 10)
    single = []
    for seed in range(60):
        with noise_averaged(module, draws=1, seed=seed):
            single.append(module(x))
    draws = torch.stack(single).double()
    twin = copy.deepcopy(layer).train()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = torch.stack([twin(x) for _ in range(60)]).double()
    assert float(draws.mean()) == pytest.approx(float(expected.mean()), rel=0.06)
    assert float(draws.var(0).mean()) == pytest.approx(float(expected.var(0).mean()), rel=0.15)
    if noise is not None and noise.is_multiplicative:
        assert float((draws / x).var()) == pytest.approx(noise.variance, rel=0.15)


def test_what_can_not_be_averaged_is_refused(module, x):
    with pytest.raises(InputError, match="draws: give a whole number, 1 to"), noise_averaged(module, draws=0):
        pass
    with pytest.raises(InputError, match="Module is needed"), noise_averaged(torch.relu):
        pass

    class Numpy(nn.Module):
        def forward(self, x):
            import numpy as np

            return x * float(np.random.rand()) if self.training else x

    with pytest.raises(InputError, match="numpy"), noise_averaged(Numpy()) as silent:
        silent(x)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_forward_that_writes_into_its_input_begins_every_draw_with_what_was_given(module, x, requires_grad):
    shifted = nn.Sequential(nn.Threshold(0.2, 0.0), module)
    in_place = nn.Sequential(nn.Threshold(0.2, 0.0, inplace=True), module)
    given = x.clone().requires_grad_(requires_grad)
    with noise_averaged(shifted, 8), torch.set_grad_enabled(requires_grad):
        expected = shifted(x)
    with noise_averaged(in_place, 8), torch.set_grad_enabled(requires_grad):
        assert torch.equal(in_place(given), expected)
        assert torch.equal(in_place(given), expected)
    assert torch.equal(given, x)


@pytest.mark.parametrize("options", [{"draws": 2.5}, {"draws": True}, {"seed": -1}, {"seed": "1"}])
def test_numbers_that_are_none_are_refused(module, options):
    with pytest.raises(InputError, match="give a whole number"), noise_averaged(module, **options):
        pass


def test_a_module_of_inference_mode_is_averaged_too(x):
    with torch.inference_mode():
        module = regressor()
    flags = [parameter.requires_grad for parameter in module.parameters()]
    with torch.inference_mode(), noise_averaged(module.eval(), 4):
        inside = module(x)
    with torch.no_grad(), noise_averaged(module, 4):
        assert torch.equal(module(x), inside)
    assert [parameter.requires_grad for parameter in module.parameters()] == flags
