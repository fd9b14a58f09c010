"""Pre-activation residual blocks, and the networks that are three stages of them: pre-activation and wide ResNets.

A block is  x + conv_k(relu(bn_k( ... conv_1(relu(bn_1(x))))))  with k = 2 convolutions (basic: 3x3, 3x3) or k = 3
(bottleneck: 1x1, 3x3, 1x1, four times wider at its end). Where the shape changes, the shortcut is a 1x1 convolution of
the pre-activated input.

The noise of site a stands directly upstream of the last BN of each block; of site b, between the ReLU of that BN and
the last convolution, which is where the authors of the wide ResNet have their Dropout; of site last, between the
pooling and the classifier.

    PreResNet    16, 32, 64 channels; depth 6n+2 with n basic blocks in each stage, 9n+2 with n bottlenecks
    WideResNet   16k, 32k, 64k channels of n basic blocks; depth 6n+4: the authors count a 1x1 convolution in each stage

Sources: He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016, arXiv 1603.05027; Zagoruyko,
Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146; the sites are those of Li, Chen, Hu, Yang, CVPR 2019,
arXiv 1801.05134.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.errors import InputError
from vsfix.trainers.layers.image_layers import blocks_of_depth, classify_pooled, convolution, initialize_he
from vsfix.trainers.layers.noise_layers import make_noise_layer
from vsfix.trainers.layers.noise_sites import NO_NOISE, NoiseSites

BlockKind = Literal["basic", "bottleneck"]
MIN_IMAGE_SIZE = 8
_STAGE_CHANNELS = (16, 32, 64)
_BOTTLENECK_FROM = 164
_FIRST_CHANNELS = 16
wide_blocks_per_stage = partial(blocks_of_depth, layers=6, others=4, examples="16, 28 or 40")


_KERNELS: Mapping[BlockKind, tuple[int, ...]] = {"basic": (3, 3), "bottleneck": (1, 3, 1)}
_EXPANSION: Mapping[BlockKind, int] = {"basic": 1, "bottleneck": 4}  # channels of its output over those inside


class PreActivationBlock(nn.Module):
    """One residual block.

    Shapes: (N, in_channels, H, W) -> (N, channels * expansion, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, kind: BlockKind, in_channels: int, channels: int, stride: int, noise: NoiseSites) -> None:
        super().__init__()
        kernels = _KERNELS[kind]
        strided, last = kernels.index(3), len(kernels) - 1
        widths = [in_channels] + [channels] * last + [channels * _EXPANSION[kind]]
        self.bn1 = nn.BatchNorm2d(in_channels)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index, kernel in enumerate(kernels):
            if index == last:
                layers.update(noise.layers("a"))
            if index > 0:
                layers[f"bn{index + 1}"] = nn.BatchNorm2d(widths[index])
                layers[f"relu{index + 1}"] = nn.ReLU(inplace=True)
            if index == last:
                layers.update(noise.layers("b"))
            layers[f"conv{index + 1}"] = convolution(
                widths[index], widths[index + 1], kernel, stride if index == strided else 1
            )
        self.body = nn.Sequential(layers)
        keeps_shape = stride == 1 and in_channels == widths[-1]
        self.shortcut = None if keeps_shape else convolution(in_channels, widths[-1], 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds the body's output to the shortcut's; shapes as above."""
        activated = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out: torch.Tensor = self.body(activated) + shortcut
        return out


@dataclass(frozen=True)
class PreActivationShape:
    """The size of one network.

    Attributes:
        block: the kind of its blocks.
        count: blocks of each stage.
        first: channels of the first convolution's output.
        stages: channels inside the blocks of each stage.
    """

    block: BlockKind
    count: int
    first: int
    stages: tuple[int, int, int]


class PreActivationNetwork(nn.Module):
    """A 3x3 convolution, three stages of blocks, BN, ReLU, mean over positions, classifier.

    The second and the third stage halve the image.

    Shapes: (N, in_channels, H, W) with H and W of at least 8 -> (N, num_classes).

    Args:
        shape: its size.
        in_channels: channels of the images.
        num_classes: outputs.
        noise: of each site, see the head of this module.
    """

    def __init__(self, shape: PreActivationShape, in_channels: int, num_classes: int, noise: NoiseSites) -> None:
        super().__init__()
        channels = shape.first
        self.conv = convolution(in_channels, channels, 3)
        stages: list[nn.Module] = []
        for index, inside in enumerate(shape.stages):
            blocks: list[nn.Module] = []
            for position in range(shape.count):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(PreActivationBlock(shape.block, channels, inside, stride, noise))
                channels = inside * _EXPANSION[shape.block]
            stages.append(nn.Sequential(*blocks))
        self.stage1, self.stage2, self.stage3 = stages
        self.bn = nn.BatchNorm2d(channels)
        self.noise = make_noise_layer(noise.last)
        self.classifier = nn.Linear(channels, num_classes)
        initialize_he(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, shape (N, num_classes)."""
        x = self.stage3(self.stage2(self.stage1(self.conv(x))))
        x = F.relu(self.bn(x), inplace=True)
        return classify_pooled(x, self.noise, self.classifier)


def choose_block(depth: int, block: BlockKind | None = None) -> BlockKind:
    """The kind of block of a network of this depth.

    Where nothing is asked for: basic for a depth of 6n+2 below 164, bottleneck for 9n+2 from 164 on, and the one that
    fits where the other does not.

    Args:
        depth: layers with weights on the longest path.
        block: the kind that is asked for.

    Raises:
        InputError: the depth does not fit.
    """
    fitting = [kind for kind in _KERNELS if block in (None, kind) and _blocks_per_stage(depth, kind)]
    if not fitting:
        forms = {"basic": "6n+2", "bottleneck": "9n+2", None: "6n+2 (basic) or 9n+2 (bottleneck)"}[block]
        raise InputError(f"the depth must be {forms} with n of at least 1, not {depth}")
    return fitting[0] if depth < _BOTTLENECK_FROM else fitting[-1]


class PreResNet(PreActivationNetwork):
    """The network.

    Shapes: (N, in_channels, H, W) with H and W of at least 8 -> (N, num_classes).

    Args:
        depth: layers with weights on the longest path: 6n+2 or 9n+2, n of at least 1.
        in_channels: channels of the images.
        num_classes: outputs.
        width: the factor on 16, 32 and 64 channels.
        noise: of each site, see the head of this module.
        block: "basic" or "bottleneck" instead of what the depth suggests.

    Raises:
        InputError: the depth does not fit the block.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int,
        num_classes: int,
        *,
        width: int = 1,
        noise: NoiseSites = NO_NOISE,
        block: BlockKind | None = None,
    ) -> None:
        kind = choose_block(depth, block)
        first, second, third = (base * width for base in _STAGE_CHANNELS)
        shape = PreActivationShape(kind, _blocks_per_stage(depth, kind), first, (first, second, third))
        super().__init__(shape, in_channels, num_classes, noise)


def _blocks_per_stage(depth: int, kind: BlockKind) -> int:
    """The n of the depth; 0 where the depth does not fit."""
    count, rest = divmod(depth - 2, len(_STAGE_CHANNELS) * len(_KERNELS[kind]))
    return 0 if rest else max(count, 0)


class WideResNet(PreActivationNetwork):
    """The network.

    Shapes: (N, in_channels, H, W) with H and W of at least 8 -> (N, num_classes).

    Args:
        depth: 6n+4, n of at least 1.
        widen: the factor k, at least 1.
        in_channels: channels of the images.
        num_classes: outputs.
        width: the factor on all channels, those of the first convolution too, which `widen` leaves unchanged.
        noise: of each site, see the head of this module.

    Raises:
        InputError: the depth does not fit.
    """

    def __init__(
        self,
        depth: int,
        widen: int,
        in_channels: int,
        num_classes: int,
        *,
        width: int = 1,
        noise: NoiseSites = NO_NOISE,
    ) -> None:
        count, first = wide_blocks_per_stage(depth), _FIRST_CHANNELS * width
        wide = first * widen
        super().__init__(
            PreActivationShape("basic", count, first, (wide, 2 * wide, 4 * wide)), in_channels, num_classes, noise
        )
