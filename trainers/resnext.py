"""Residual networks with grouped convolutions (ResNeXt) for small images.

    network   conv3x3 to 64 channels, BN, ReLU, three stages of n blocks, mean, classifier

Blocks are the bottlenecks of `residual_block`. With a cardinality of c and a width of d, the grouped convolution of
stage s = 0, 1, 2 has c groups of d 2^s channels, and the block ends in 256 * 2^s, whatever c and d are. The second and
the third stage halve the image. The depth is 9n+2. The noise of site last stands behind the mean, in front of the
classifier.

Source: Xie, Girshick, Dollar, Tu, He, "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017, arXiv
1611.05431.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.errors import InputError

from .convolution import convolution
from .initialization import initialize_he
from .noise_layers import make_noise_layer
from .noise_sites import NO_NOISE, NoiseSites
from .pooled_classifier import classify_pooled
from .residual_block import BlockShape, ResidualBlock

_FIRST_CHANNELS = 64
_EXPANSION = 4


def resnext_blocks_per_stage(depth: int) -> int:
    """The n of a depth of 9n+2.

    Raises:
        InputError: the depth does not fit.
    """
    count, rest = divmod(depth - 2, 9)
    if rest or count < 1:
        raise InputError(
            "the depth must be 9n+2 with n of at least 1, as in 11, 20 or 29 (for large images: 50, 101 or 152),"
            f" not {depth}"
        )
    return count


class ResNeXt(nn.Module):
    """The network.

    Shapes: (N, in_channels, H, W) with H and W of at least 8 -> (N, num_classes).

    Args:
        depth: 9n+2, n of at least 1.
        cardinality: groups of each 3x3 convolution, at least 1.
        group_width: channels of one group in the first stage, at least 1.
        in_channels: channels of the images.
        num_classes: outputs.
        width: what all channels are multiplied by; the number of groups stays.
        noise: what stands at which site, see the heads of this module and of `residual_block`.

    Raises:
        InputError: the depth does not fit.
    """

    def __init__(
        self,
        depth: int,
        cardinality: int,
        group_width: int,
        in_channels: int,
        num_classes: int,
        *,
        width: int = 1,
        noise: NoiseSites = NO_NOISE,
    ) -> None:
        super().__init__()
        count = resnext_blocks_per_stage(depth)
        channels = _FIRST_CHANNELS * width
        self.conv = convolution(in_channels, channels, 3)
        self.bn = nn.BatchNorm2d(channels)
        stages: list[nn.Module] = []
        for index in range(3):
            inside = cardinality * group_width * width * 2**index
            outside = _EXPANSION * _FIRST_CHANNELS * width * 2**index
            blocks: list[nn.Module] = []
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                shape = BlockShape((inside, inside), outside, cardinality, stride)
                blocks.append(ResidualBlock(channels, shape, noise))
                channels = outside
            stages.append(nn.Sequential(*blocks))
        self.stage1, self.stage2, self.stage3 = stages
        self.noise = make_noise_layer(noise.last)
        self.classifier = nn.Linear(channels, num_classes)
        initialize_he(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, shape (N, num_classes)."""
        x = F.relu(self.bn(self.conv(x)), inplace=True)
        x = self.stage3(self.stage2(self.stage1(x)))
        return classify_pooled(x, self.noise, self.classifier)
