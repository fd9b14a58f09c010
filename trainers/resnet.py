"""Residual networks for images of ImageNet's size: ResNet, ResNeXt, and both with squeeze-and-excitation; SENet-154.

    stem      conv7x7, stride 2, to 64 channels, BN, ReLU, maximum of 3x3 with stride 2
    stages    four, of n_1 to n_4 blocks with 64, 128, 256, 512 channels inside, from the second on with stride 2
    head      mean, classifier

Blocks are those of `residual_block`: basic up to depth 34, bottlenecks four times wider at their end from 50 on. With a
cardinality of c and a width of d (ResNeXt) the 3x3 convolution of stage s = 0 to 3 has c groups of d 2^s channels.
SENet-154 has three 3x3 convolutions to 64, 64 and 128 channels for a stem, 64 groups of 4 2^s channels, half as many
behind the first 1x1 convolution of a block, and 3x3 convolutions in the shortcuts that halve the image.

The noise of site last stands behind the mean, in front of the classifier: where SENet-154 has Dropout 0.2.

Sources: He, Zhang, Ren, Sun, CVPR 2016, arXiv 1512.03385 (with the stride in the 3x3 convolution, as has become usual);
Xie, Girshick, Dollar, Tu, He, CVPR 2017, arXiv 1611.05431; Hu, Shen, Sun, CVPR 2018, arXiv 1709.01507.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from vsfix.graph_passes.errors import InputError

from .convolution import convolution
from .initialization import initialize_he
from .noise_layers import make_noise_layer
from .noise_sites import NO_NOISE, NoiseSites
from .pooled_classifier import classify_pooled
from .residual_block import BlockShape, ResidualBlock

MIN_IMAGENET_SIZE = 32
_STAGE_CHANNELS = (64, 128, 256, 512)
_EXPANSION = 4
_REDUCTION = 16
_BLOCKS: Mapping[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
_BOTTLENECK_FROM = 50
GROUPED_DEPTHS = (50, 101, 152)
"""The depths of ResNeXt for large images; other depths are those for small ones."""


@dataclass(frozen=True)
class ResNetForm:
    """One network of the family.

    Attributes:
        depth: layers with weights on the longest path: 18, 34, 50, 101, 152 or 200.
        cardinality: groups of each 3x3 convolution.
        group_width: channels of one group in the first stage.
        attention: squeeze-and-excitation in every block.
        deep: the stem, the halved first convolution and the 3x3 shortcuts of SENet-154.

    Raises:
        InputError: no such depth, or one whose blocks have no groups.
    """

    depth: int
    cardinality: int = 1
    group_width: int = 64
    attention: bool = False
    deep: bool = False

    def __post_init__(self) -> None:
        if self.depth not in _BLOCKS:
            raise InputError(f"the depth must be one of {', '.join(map(str, _BLOCKS))}, not {self.depth}")
        if self.cardinality > 1 and self.depth not in GROUPED_DEPTHS:
            raise InputError(f"with groups the depth must be one of {', '.join(map(str, GROUPED_DEPTHS))}")

    @property
    def blocks(self) -> tuple[int, int, int, int]:
        """Blocks of each stage."""
        return _BLOCKS[self.depth]

    def shape(self, stage: int, width: int, stride: int) -> BlockShape:
        """The block of a stage, counted from 0; `width` multiplies all channels."""
        base = _STAGE_CHANNELS[stage] * width
        reduction = _REDUCTION if self.attention else 0
        if self.depth < _BOTTLENECK_FROM:
            return BlockShape((base,), base, stride=stride, reduction=reduction)
        grouped = self.cardinality * self.group_width * width * 2**stage
        return BlockShape(
            inside=(grouped // 2 if self.deep else grouped, grouped),
            outside=_EXPANSION * base,
            groups=self.cardinality,
            stride=stride,
            reduction=reduction,
            shortcut_kernel=3 if self.deep else 1,
        )


class ResNet(nn.Module):
    """The network.

    Shapes: (N, in_channels, H, W) with H and W of at least 32 -> (N, num_classes).

    Args:
        form: which of the family.
        in_channels: channels of the images.
        num_classes: outputs.
        width: what all channels are multiplied by; the number of groups stays.
        noise: what stands at which site, see the heads of this module and of `residual_block`.
    """

    def __init__(
        self, form: ResNetForm, in_channels: int, num_classes: int, *, width: int = 1, noise: NoiseSites = NO_NOISE
    ) -> None:
        super().__init__()
        self.stem, channels = _stem(in_channels, width, deep=form.deep)
        stages: list[nn.Module] = []
        for index, count in enumerate(form.blocks):
            blocks: list[nn.Module] = []
            for position in range(count):
                shape = form.shape(index, width, stride=2 if index > 0 and position == 0 else 1)
                blocks.append(ResidualBlock(channels, shape, noise))
                channels = shape.outside
            stages.append(nn.Sequential(*blocks))
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.noise = make_noise_layer(noise.last)
        self.classifier = nn.Linear(channels, num_classes)
        initialize_he(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, shape (N, num_classes)."""
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(x)))))
        return classify_pooled(x, self.noise, self.classifier)


def _stem(in_channels: int, width: int, *, deep: bool) -> tuple[nn.Sequential, int]:
    """What brings the image to a quarter of its size, and the channels behind it."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    forms = ((3, 64, 2), (3, 64, 1), (3, 128, 1)) if deep else ((7, 64, 2),)
    channels = in_channels
    for index, (kernel, base, stride) in enumerate(forms, 1):
        layers[f"conv{index}"] = convolution(channels, base * width, kernel, stride)
        channels = base * width
        layers[f"bn{index}"] = nn.BatchNorm2d(channels)
        layers[f"relu{index}"] = nn.ReLU(inplace=True)
    layers["pool"] = nn.MaxPool2d(3, 2, ceil_mode=True) if deep else nn.MaxPool2d(3, 2, padding=1)
    return nn.Sequential(layers), channels
