"""The one kind of convolution that the networks are made of."""

from __future__ import annotations

from torch import nn


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of the image but for its stride; the BN behind it has the bias.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)), for an odd kernel.
    """
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
