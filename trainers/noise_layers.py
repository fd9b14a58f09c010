"""Noise layers: each as a function and as a Module, side by side.

    dropout   X = a x / p, a ~ Bernoulli(p)         torch's own, named again here so that the two stand together
    uout      X = x (1 + r), r ~ U(-beta, beta)     E[X] = x, Var[X] = x^2 beta^2 / 3

Both are unbiased and the identity in eval mode. Uout keeps the shift ratio of a BatchNorm behind it near 1:
3 / (3 + beta^2) for zero mean, against p for Dropout. Source: Li, Chen, Hu, Yang, "Understanding the Disharmony between
Dropout and Batch Normalization by Variance Shift", CVPR 2019, arXiv 1801.05134.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import Dropout
from torch.nn.functional import dropout
from torch.overrides import handle_torch_function, has_torch_function_unary

from vsfix.graph_passes.noise import Noise, NoiseKind

__all__ = ["Dropout", "Site", "Uout", "dropout", "make_noise_layer", "uout"]

Site = Literal["a", "b", "last", "none"]
"""Where a network puts its noise, in the words of the paper; each network says what that is among its layers."""


def uout(x: torch.Tensor, beta: float, training: bool) -> torch.Tensor:
    """Multiplies each element by a factor of its own: X = x (1 + r), r ~ U(-beta, beta).

    The gradient is dX/dx = 1 + r, with the r that the forward drew.

    Args:
        x: floating point, any shape.
        beta: the half width, in (0, 1].
        training: without it, x comes back as it is.

    Returns:
        A tensor of the shape, dtype and device of x.

    Raises:
        InputError: beta is outside its range.
    """
    # Part of torch's function protocol, so that the export can see the call and mark it.
    if has_torch_function_unary(x):
        result: torch.Tensor = handle_torch_function(uout, (x,), x, beta, training)
        return result
    Noise(NoiseKind.UOUT, beta)
    if not training:
        return x
    # One draw of 1 + r instead of a draw and an addition: one pass over memory less.
    return x * torch.empty_like(x, requires_grad=False).uniform_(1 - beta, 1 + beta)


class Uout(nn.Module):
    """X = x (1 + r), r ~ U(-beta, beta) elementwise in training; the identity in eval mode.

    Shapes: any, kept.

    Attributes:
        beta: the half width, in (0, 1].

    Raises:
        InputError: beta is outside its range.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = Noise(NoiseKind.UOUT, beta).value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Noise on x, any shape."""
        return uout(x, self.beta, self.training)

    def extra_repr(self) -> str:
        """What stands between the brackets when the layer is printed."""
        return f"beta={self.beta:g}"


def make_noise_layer(noise: Noise | None) -> nn.Module:
    """The layer that puts `noise` on its input in training; None makes an identity."""
    if noise is None:
        return nn.Identity()
    if noise.kind is NoiseKind.UOUT:
        return Uout(noise.value)
    if noise.kind is NoiseKind.FEATURE_DROPOUT:
        return nn.Dropout2d(noise.value)
    return Dropout(noise.value)
