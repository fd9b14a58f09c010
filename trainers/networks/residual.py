"""Residual networks in their original, post-activation order: ResNet, ResNeXt and SENet.

    basic        relu(shortcut(x) + bn2(conv3x3(relu(bn1(conv3x3(x))))))
    bottleneck   relu(shortcut(x) + bn3(conv1x1(relu(bn2(conv3x3(relu(bn1(conv1x1(x)))))))))

The stride stands in the (first) 3x3 convolution. Where the shape changes, the shortcut is a convolution and a BN. With
squeeze-and-excitation the body ends in a factor for each channel: s(W2 relu(W1 mean(y))) y, s the logistic function.

The noise of site a stands directly upstream of the last BN of a block; of site b, between the last ReLU inside the
block and its last convolution; of site last, between the mean and the classifier, where SENet-154 has Dropout 0.2. The
shortcuts have none.

    ResNeXt   small images: conv3x3 to 64 channels, BN, ReLU, three stages of n bottlenecks, mean, classifier; depth
              9n+2; with a cardinality of c and a width of d, the grouped convolution of stage s = 0, 1, 2 has c groups
              of d 2^s channels, and the block ends in 256 * 2^s; the second and the third stage halve the image
    ResNet    images of ImageNet's size: conv7x7, stride 2, to 64 channels, BN, ReLU, maximum of 3x3 with stride 2;
              four stages with 64, 128, 256, 512 channels inside, from the second on with stride 2; mean, classifier;
              basic up to depth 34, bottlenecks four times wider at their end from 50 on; ResNeXt's have c groups of
              d 2^s channels

SENet-154 has three 3x3 convolutions to 64, 64 and 128 channels for a stem, 64 groups of 4 2^s channels, half as many
channels after the first 1x1 convolution of a block, and 3x3 convolutions in the shortcuts that halve the image.

Sources: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385 (with the
stride in the 3x3 convolution, as has become usual); Xie, Girshick, Dollar, Tu, He, "Aggregated Residual Transformations
for Deep Neural Networks", CVPR 2017, arXiv 1611.05431; Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018,
arXiv 1709.01507; the sites are those of Li, Chen, Hu, Yang, CVPR 2019, arXiv 1801.05134.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.errors import InputError
from vsfix.trainers.layers.image_layers import (
    SqueezeExcitation,
    blocks_of_depth,
    classify_pooled,
    convolution,
    initialize_he,
)
from vsfix.trainers.layers.noise_layers import make_noise_layer
from vsfix.trainers.layers.noise_sites import NO_NOISE, NoiseSites

_SMALL_FIRST_CHANNELS = 64
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
resnext_blocks_per_stage = partial(
    blocks_of_depth, layers=9, others=2, examples="11, 20 or 29 (for large images: 50, 101 or 152)"
)


@dataclass(frozen=True)
class BlockShape:
    """The channels of one block.

    Attributes:
        inside: of the output of each convolution but the last: one number for a basic block, two for a bottleneck.
        outside: of the block's output.
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


class ResidualBlock(nn.Module):
    """One residual block.

    Shapes: (N, in_channels, H, W) -> (N, shape.outside, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels: channels of the input.
        shape: what is inside, see `BlockShape`.
        noise: of sites a and b.
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


def _stage(in_channels: int, shapes: Sequence[BlockShape], noise: NoiseSites) -> nn.Sequential:
    """Blocks one after another."""
    channels = [in_channels, *(shape.outside for shape in shapes[:-1])]
    return nn.Sequential(*(ResidualBlock(c, shape, noise) for c, shape in zip(channels, shapes, strict=True)))


def _projection(in_channels: int, shape: BlockShape) -> nn.Sequential:
    """The shortcut where the shape changes."""
    # A kernel larger than 1 is for the blocks that halve the image.
    kernel = shape.shortcut_kernel if shape.stride > 1 else 1
    return nn.Sequential(
        OrderedDict(
            conv=convolution(in_channels, shape.outside, kernel, shape.stride), bn=nn.BatchNorm2d(shape.outside)
        )
    )


class ResNeXt(nn.Module):
    """The network.

    Shapes: (N, in_channels, H, W) with H and W of at least 8 -> (N, num_classes).

    Args:
        depth: 9n+2, n of at least 1.
        cardinality: groups of each 3x3 convolution, at least 1.
        group_width: channels of one group in the first stage, at least 1.
        in_channels: channels of the images.
        num_classes: outputs.
        width: the factor on all channels; the number of groups stays.
        noise: of each site, see the head of this module.

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
        channels = _SMALL_FIRST_CHANNELS * width
        self.conv = convolution(in_channels, channels, 3)
        self.bn = nn.BatchNorm2d(channels)
        stages: list[nn.Module] = []
        for index in range(3):
            inside = cardinality * group_width * width * 2**index
            outside = _EXPANSION * _SMALL_FIRST_CHANNELS * width * 2**index
            strides = [2 if index else 1] + [1] * (count - 1)
            shapes = [BlockShape((inside, inside), outside, cardinality, stride) for stride in strides]
            stages.append(_stage(channels, shapes, noise))
            channels = outside
        self.stage1, self.stage2, self.stage3 = stages
        self.noise = make_noise_layer(noise.last)
        self.classifier = nn.Linear(channels, num_classes)
        initialize_he(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, shape (N, num_classes)."""
        x = F.relu(self.bn(self.conv(x)), inplace=True)
        x = self.stage3(self.stage2(self.stage1(x)))
        return classify_pooled(x, self.noise, self.classifier)


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
        width: the factor on all channels; the number of groups stays.
        noise: of each site, see the head of this module.
    """

    def __init__(
        self, form: ResNetForm, in_channels: int, num_classes: int, *, width: int = 1, noise: NoiseSites = NO_NOISE
    ) -> None:
        super().__init__()
        self.stem, channels = _stem(in_channels, width, deep=form.deep)
        stages: list[nn.Module] = []
        for index, count in enumerate(form.blocks):
            shapes = [form.shape(index, width, stride) for stride in [2 if index else 1] + [1] * (count - 1)]
            stages.append(_stage(channels, shapes, noise))
            channels = shapes[-1].outside
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.noise = make_noise_layer(noise.last)
        self.classifier = nn.Linear(channels, num_classes)
        initialize_he(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, shape (N, num_classes)."""
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(x)))))
        return classify_pooled(x, self.noise, self.classifier)


def _stem(in_channels: int, width: int, *, deep: bool) -> tuple[nn.Sequential, int]:
    """The layers that bring the image to a quarter of its size, and the channels of their output."""
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
