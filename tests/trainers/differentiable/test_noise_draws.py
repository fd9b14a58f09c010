from __future__ import annotations

import numpy as np
import pytest
import torch

from vsfix.graph_passes.noise.noise import Noise, NoiseKind
from vsfix.graph_passes.noise.sampling import apply_noise
from vsfix.trainers.differentiable.onnx_evaluation import draw_noise

ALL = [Noise(kind, 0.3) for kind in NoiseKind]


def draw(noise: Noise, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return draw_noise(noise, x, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_mean_and_variance_are_those_of_the_noise_on_arrays(noise: Noise) -> None:
    x = torch.full((300, 200, 3), 1.7)
    ours = draw(noise, x).double().numpy()
    theirs = apply_noise(noise, x.numpy(), np.random.default_rng(1)).astype(np.float64)
    tolerance = 0.25 if noise.kind is NoiseKind.DROP_PATH else 0.02  # 300 draws against at least 60,000
    assert ours.mean() == pytest.approx(theirs.mean(), abs=tolerance)
    assert ours.var() == pytest.approx(theirs.var(), rel=tolerance)


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_a_draw_is_shared_by_the_same_elements(noise: Noise) -> None:
    x = torch.ones(40, 30, 20)
    noisy, reference = draw(noise, x).numpy(), apply_noise(noise, x.numpy(), np.random.default_rng(1))
    for axis in range(3):
        assert (np.ptp(noisy, axis=axis) == 0).all() == (np.ptp(reference, axis=axis) == 0).all()


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_the_seed_repeats_the_draws_and_the_gradient_is_that_of_the_draw(noise: Noise) -> None:
    x = torch.randn(8, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.equal(draw(noise, x), draw(noise, x))
    assert not torch.equal(draw(noise, x), draw(noise, x, seed=1))
    assert torch.autograd.gradcheck(lambda x: draw(noise, x), (x,), fast_mode=True)


def test_inputs_without_positions_have_one_draw_per_feature() -> None:
    noisy = draw(Noise(NoiseKind.FEATURE_DROPOUT, 0.5), torch.ones(100, 50))
    assert set(noisy.unique().tolist()) == {0.0, 2.0}
    assert noisy.mean().item() == pytest.approx(1, abs=0.05)
