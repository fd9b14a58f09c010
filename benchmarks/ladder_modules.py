"""The ladder's networks that `vsfix train` does not know: regressors, a network of two heads, a U-Net and others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from vsfix.trainers.layers.noise_layers import DropPath

Order = Literal["dropout-bn-relu", "relu-dropout-bn", "bn-relu-dropout"]
WIDTH = 64


def regressor(columns: int, order: Order, ratio: float, depth: int) -> nn.Module:
    """An MLP of `depth` hidden layers from `columns` numbers to one; a ratio of 0 leaves the Dropout out."""
    layers: list[nn.Module] = []
    for number in range(depth):
        parts: dict[str, Callable[[], nn.Module]] = {
            "dropout": lambda: nn.Dropout(ratio),
            "bn": lambda: nn.BatchNorm1d(WIDTH),
            "relu": nn.ReLU,
        }
        layers.append(nn.Linear(WIDTH if number else columns, WIDTH))
        layers += [parts[name]() for name in order.split("-") if name != "dropout" or ratio]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1))


def convolution(inputs: int, outputs: int, noise: nn.Module | None = None, stride: int = 1) -> nn.Sequential:
    """Convolution 3x3, noise, BatchNorm, ReLU."""
    first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(first, *([] if noise is None else [noise]), nn.BatchNorm2d(outputs), nn.ReLU())


class TwoHeads(nn.Module):
    """Ten class scores and four box numbers of a canvas (N, 1, 40, 40), side by side in one tensor (N, 14)."""

    def __init__(self, ratio: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(1, 16, stride=2),
            convolution(16, 32, nn.Dropout(ratio), stride=2),
            convolution(32, 32, nn.Dropout(ratio)),
            convolution(32, 64, nn.Dropout(ratio), stride=2),
            nn.Flatten(),
            nn.Linear(64 * 5 * 5, 64),
            nn.ReLU(),
        )
        self.classes = nn.Linear(64, 10)
        self.box = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores, then the box."""
        features = self.features(x)
        return torch.cat([self.classes(features), self.box(features)], dim=1)  # (N, 14)


class SmallUNet(nn.Module):
    """The probability of each pixel of a canvas (N, 1, 40, 40) to belong to a shoe."""

    def __init__(self, ratio: float = 0.3) -> None:
        super().__init__()
        self.first = convolution(1, 12)
        self.second = convolution(12, 24, nn.Dropout2d(ratio), stride=2)
        self.third = convolution(24, 48, nn.Dropout2d(ratio), stride=2)
        self.up = convolution(48 + 24, 24, nn.Dropout2d(ratio))
        self.last = convolution(24 + 12, 12, nn.Dropout2d(ratio))
        self.mask = nn.Conv2d(12, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The mask, (N, 1, 40, 40)."""
        first = self.first(x)  # (N, 12, 40, 40)
        second = self.second(first)  # (N, 24, 20, 20)
        third = self.third(second)  # (N, 48, 10, 10)
        up = self.up(torch.cat([_doubled(third), second], dim=1))
        last = self.last(torch.cat([_doubled(up), first], dim=1))
        return torch.sigmoid(self.mask(last))


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class PathBlock(nn.Module):
    """x + DropPath(branch(x)), the BatchNorms of the branch before its convolutions."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            DropPath(ratio),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The shape of x, (N, C, H, W)."""
        result: torch.Tensor = x + self.branch(x)
        return result


def drop_path_network(ratio: float = 0.4, blocks: int = 5) -> nn.Module:
    """A residual network at half resolution whose branches are dropped as wholes."""
    stem = nn.Conv2d(1, 24, 3, 2, padding=1, bias=False)
    body = [PathBlock(24, ratio) for _ in range(blocks)]
    return nn.Sequential(stem, *body, nn.BatchNorm2d(24), nn.ReLU(), *_pooled(24))


class NormalizedBlock(nn.Module):
    """A block in the manner of ConvNeXt, with GroupNorm in the place of BatchNorm and Dropout in its middle."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(1, channels),
            nn.Conv2d(channels, 2 * channels, 1),
            nn.GELU(),
            nn.Dropout(ratio),
            nn.Conv2d(2 * channels, channels, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The shape of x, (N, C, H, W)."""
        result: torch.Tensor = x + self.branch(x)
        return result


def normalized_network(ratio: float = 0.5, blocks: int = 3) -> nn.Module:
    """Patches of 4x4 pixels, blocks with GroupNorm, LayerNorm before the classifier: no BatchNorm at all."""
    body = [NormalizedBlock(32, ratio) for _ in range(blocks)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 10)]
    return nn.Sequential(nn.Conv2d(1, 32, 4, 4), *body, *head)


def plain_mlp(ratio: float = 0.5) -> nn.Module:
    """Three layers of Linear, ReLU and Dropout without any BatchNorm."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (784, 256, 256):
        layers += [nn.Linear(inputs, 256), nn.ReLU(), nn.Dropout(ratio)]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def plain_network(last_dropout: float = 0.0) -> nn.Module:
    """Convolution, BatchNorm, ReLU, three times; where asked for, Dropout between the pool and the classifier."""
    body = [convolution(1, 16, stride=2), convolution(16, 32, stride=2), convolution(32, 64)]
    *pool, classifier = _pooled(64)
    return nn.Sequential(*body, *pool, *([nn.Dropout(last_dropout)] if last_dropout else []), classifier)


def _pooled(channels: int) -> list[nn.Module]:
    """The mean over all positions, and a classifier of ten classes."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
