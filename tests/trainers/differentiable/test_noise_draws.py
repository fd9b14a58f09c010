from __future__ import annotations

import numpy as np
import pytest
import torch

from vsfix.graph_passes.noise.noise import Noise, NoiseKind
from vsfix.graph_passes.noise.sampling import apply_noise
from vsfix.trainers.differentiable.onnx_evaluation import draw_noise

ALL = [Noise(kind, 0.3) for kind in NoiseKind]


@pytest.mark.parametrize("noise", ALL, ids=str)
@pytest.mark.parametrize("shape", [(40, 30, 20), (100, 50)])
def test_the_noise_is_that_on_arrays(noise: Noise, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = apply_noise(noise, x.numpy(), np.random.default_rng(1))
    np.testing.assert_allclose(draw_noise(noise, x, np.random.default_rng(1)).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_the_gradient_is_that_of_the_draw(noise: Noise) -> None:
    x = torch.randn(8, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: draw_noise(noise, x, np.random.default_rng(1)), (x,), fast_mode=True)
