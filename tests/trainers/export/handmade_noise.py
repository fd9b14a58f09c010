"""Layers that make their noise by hand, as model zoos write them: in eval mode nothing shows that it is there."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class DropPath(nn.Module):
    """Stochastic depth with the interface and the forward of timm.layers.DropPath."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1 - self.drop_prob
        random_tensor = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep_prob)
        if keep_prob > 0.0 and self.scale_by_keep:
            random_tensor.div_(keep_prob)
        return x * random_tensor


class FloorDropPath(nn.Module):
    """Stochastic depth as it was written before `bernoulli_`: floor(keep + U(0, 1))."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1 - self.drop_prob
        random_tensor = keep_prob + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x.div(keep_prob) * random_tensor.floor_()


class StochasticDepth(nn.Module):
    """Stochastic depth with the interface of torchvision.ops.StochasticDepth; "batch" has one draw for all samples."""

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p = p
        self.mode = mode

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0.0:
            return input
        survival_rate = 1.0 - self.p
        size = [input.shape[0] if self.mode == "row" else 1] + [1] * (input.ndim - 1)
        noise = torch.empty(size, dtype=input.dtype, device=input.device).bernoulli_(survival_rate)
        if survival_rate > 0.0:
            noise.div_(survival_rate)
        return input * noise


class HandGaussianDropout(nn.Module):
    """Gaussian dropout with the parameter of keras: the rate of the Dropout of the same variance."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        return x * (1 + math.sqrt(self.rate / (1 - self.rate)) * torch.randn_like(x))


class HandDropout(nn.Module):
    """Dropout by comparing uniform numbers, one for each element or for each channel."""

    def __init__(self, p: float, channels: bool = False) -> None:
        super().__init__()
        self.p = p
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        shape = x.shape[:2] + (1,) * (x.dim() - 2) if self.channels else x.shape
        return x * (torch.rand(shape) >= self.p) / (1 - self.p)


class HandUout(nn.Module):
    """Uniform noise without the function that the export knows."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + self.width * (2 * torch.rand_like(x) - 1)) if self.training else x


class TrainingOnlyDropout(nn.Module):
    """Torch's own function, called in training mode only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.3) if self.training else x


class GaussianNoise(nn.Module):
    """Adds noise: no factor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training else x


class LockedDropout(nn.Module):
    """One mask for the whole batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.empty_like(x[:1]).bernoulli_(0.7) / 0.7 if self.training else x


class TokenDropout(nn.Module):
    """One draw for each position, shared by its channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.empty_like(x[:, :1]).bernoulli_(0.7) / 0.7 if self.training else x


class BlockDropout(nn.Module):
    """Neighbours along the channels are dropped in pairs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        mask = torch.empty_like(x[:, ::2]).bernoulli_(0.7).repeat_interleave(2, 1)[:, : x.shape[1]]
        return x * mask / 0.7


class LargestFirst(nn.Module):
    """Drops large values more often than small ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand_like(x) > 0.3 * x.abs()) / 0.7 if self.training else x


class TwoScales(nn.Module):
    """Mean 1, but three values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.randint_like(x, 3) if self.training else x


class Masked(nn.Module):
    """Draws, but nothing of it reaches its output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0 * torch.rand(()) if self.training else x
