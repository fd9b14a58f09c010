"""The residual block in its original, post-activation order, of ResNet, ResNeXt and SENet.

    basic        relu(shortcut(x) + bn2(conv3x3(relu(bn1(conv3x3(x))))))
    bottleneck   relu(shortcut(x) + bn3(conv1x1(relu(bn2(conv3x3(relu(bn1(conv1x1(x)))))))))

The stride stands in the (first) 3x3 convolution. Where the shape changes, the shortcut is a convolution and a BN. With
squeeze-and-excitation the body ends in a factor for each channel: s(W2 relu(W1 mean(y))) y, s the logistic function.

The noise of site a stands directly in front of the last BN; of site b, in front of the last convolution, behind its BN
and ReLU. The shortcuts have none.

Sources: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385; Hu, Shen,
Sun, "Squeeze-and-Excitation Networks", CVPR 2018, arXiv 1709.01507; the sites are those of Li, Chen, Hu, Yang, CVPR
2019, arXiv 1801.05134.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .convolution import convolution
from .noise_sites import NoiseSites


@dataclass(frozen=True)
class BlockShape:
    """The channels of one block.

    Attributes:
        inside: behind each convolution but the last: one number for a basic block, two for a bottleneck.
        outside: behind the block.
        groups: of the 3x3 convolution of a bottleneck.
        stride: of the block.
        reduction: what the channels are divided by in squeeze-and-excitation; 0 for none.
        shortcut_kernel: of the convolution in the shortcut.
    """

    inside: tuple[int, ...]
    outside: int
    groups: int = 1
    stride: int = 1
    reduction: int = 0
    shortcut_kernel: int = 1


class SqueezeExcitation(nn.Module):
    """Weighs the channels by what their means say.

    Shapes: (N, C, H, W), kept.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1)
        self.excite = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x times the factors of its channels, shape (N, C, H, W)."""
        factors = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))  # (N, C, 1, 1)
        weighed: torch.Tensor = x * factors
        return weighed


class ResidualBlock(nn.Module):
    """One residual block.

    Shapes: (N, in_channels, H, W) -> (N, shape.outside, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels: channels of the input.
        shape: what is inside, see `BlockShape`.
        noise: what stands at sites a and b.
    """

    def __init__(self, in_channels: int, shape: BlockShape, noise: NoiseSites) -> None:
        super().__init__()
        widths = (in_channels, *shape.inside, shape.outside)
        kernels = (3, 3) if len(shape.inside) == 1 else (1, 3, 1)
        strided = kernels.index(3)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index, kernel in enumerate(kernels):
            is_last = index == len(kernels) - 1
            if is_last:
                layers.update(noise.layers("b"))
            stride, groups = (shape.stride, shape.groups) if index == strided else (1, 1)
            layers[f"conv{index + 1}"] = convolution(widths[index], widths[index + 1], kernel, stride, groups=groups)
            if is_last:
                layers.update(noise.layers("a"))
            layers[f"bn{index + 1}"] = nn.BatchNorm2d(widths[index + 1])
            if not is_last:
                layers[f"relu{index + 1}"] = nn.ReLU(inplace=True)
        if shape.reduction:
            layers["attention"] = SqueezeExcitation(shape.outside, shape.reduction)
        self.body = nn.Sequential(layers)
        keeps_shape = shape.stride == 1 and in_channels == shape.outside
        self.shortcut = nn.Identity() if keeps_shape else _projection(in_channels, shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds the body's output to the shortcut's and rectifies the sum; shapes as above."""
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


def _projection(in_channels: int, shape: BlockShape) -> nn.Sequential:
    """The shortcut where the shape changes."""
    # A kernel larger than 1 is for the blocks that halve the image.
    kernel = shape.shortcut_kernel if shape.stride > 1 else 1
    return nn.Sequential(
        OrderedDict(
            conv=convolution(in_channels, shape.outside, kernel, shape.stride), bn=nn.BatchNorm2d(shape.outside)
        )
    )
