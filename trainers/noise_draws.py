"""Noise of every kind on a torch tensor, differentiable in the tensor, drawn from a generator.

`vsfix.graph_passes.noise` defines the kinds. What stands here does what `vsfix.graph_passes.noise_sampling` does to
arrays; the draws of the two differ, their distribution does not.
"""

from __future__ import annotations

import torch

from vsfix.graph_passes.noise import Noise, NoiseKind

_SELU_SATURATION = -1.7580993408473766
_CHANNELS_TOGETHER = (NoiseKind.FEATURE_DROPOUT, NoiseKind.FEATURE_ALPHA_DROPOUT)


def draw_noise(noise: Noise, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Puts noise on x, as a training run does.

    Args:
        noise: its kind and parameter.
        x: floating point, shape (N, C, ...).
        generator: of the device of x.

    Returns:
        A tensor of the shape and dtype of x; the draws are constants to the gradient.
    """
    own = x.dim()
    if noise.kind is NoiseKind.DROP_PATH:
        own = 1
    elif noise.kind in _CHANNELS_TOGETHER:
        own = min(2, own)
    draws = torch.empty(*x.shape[:own], *[1] * (x.dim() - own), dtype=x.dtype, device=x.device)
    if noise.kind is NoiseKind.UOUT:
        return x * draws.uniform_(1 - noise.value, 1 + noise.value, generator=generator)
    if noise.kind is NoiseKind.UOUT_BERNOULLI:
        signs = draws.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        return x * (1 + noise.value * signs)
    if noise.kind in (NoiseKind.GAUSSIAN_DROPOUT, NoiseKind.UOUT_GAUSSIAN):
        return x * draws.normal_(1, noise.variance**0.5, generator=generator)
    # Four times as fast as bernoulli_ with a generator of its own.
    kept = draws.uniform_(generator=generator).lt(1 - noise.value).to(x.dtype)
    if noise.is_multiplicative:
        return x * (kept / (1 - noise.value))
    a = ((1 - noise.value) * (1 + noise.value * _SELU_SATURATION**2)) ** -0.5
    b = -a * _SELU_SATURATION * noise.value
    noisy: torch.Tensor = x * (a * kept) + (a * _SELU_SATURATION * (1 - kept) + b)
    return noisy
