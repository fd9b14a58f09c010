"""Pre-activation residual blocks, and the networks that are three stages of them.

A block is  x + conv_k(relu(bn_k( ... conv_1(relu(bn_1(x))))))  with k = 2 convolutions (basic: 3x3, 3x3) or k = 3
(bottleneck: 1x1, 3x3, 1x1, four times wider at its end). Where the shape changes, the shortcut is a 1x1 convolution of
the pre-activated input.

The noise of site a stands directly in front of the last BN of each block; of site b, in front of the last convolution
of each block, behind its BN and ReLU; of site last, behind the last BN, ReLU and pooling, in front of the classifier.

Sources: He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016, arXiv 1603.05027; the sites are
those of Li, Chen, Hu, Yang, CVPR 2019, arXiv 1801.05134.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from .convolution import convolution
from .initialization import initialize_he
from .noise_layers import make_noise_layer
from .noise_sites import NoiseSites
from .pooled_classifier import classify_pooled

BlockKind = Literal["basic", "bottleneck"]


@dataclass(frozen=True)
class BlockForm:
    """The shape of one kind of block.

    Attributes:
        kernels: the kernel size of each convolution, in order.
        strided: the index of the convolution that carries the stride.
        expansion: channels behind the block over channels inside it.
    """

    kernels: tuple[int, ...]
    strided: int
    expansion: int


BLOCK_FORMS: Mapping[BlockKind, BlockForm] = {
    "basic": BlockForm(kernels=(3, 3), strided=0, expansion=1),
    "bottleneck": BlockForm(kernels=(1, 3, 1), strided=1, expansion=4),
}


class PreActivationBlock(nn.Module):
    """One residual block.

    Shapes: (N, in_channels, H, W) -> (N, channels * expansion, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, kind: BlockKind, in_channels: int, channels: int, stride: int, noise: NoiseSites) -> None:
        super().__init__()
        form = BLOCK_FORMS[kind]
        last = len(form.kernels) - 1
        widths = [in_channels] + [channels] * last + [channels * form.expansion]
        self.bn1 = nn.BatchNorm2d(in_channels)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index, kernel in enumerate(form.kernels):
            if index == last:
                layers.update(noise.layers("a"))
            if index > 0:
                layers[f"bn{index + 1}"] = nn.BatchNorm2d(widths[index])
                layers[f"relu{index + 1}"] = nn.ReLU(inplace=True)
            if index == last:
                layers.update(noise.layers("b"))
            layers[f"conv{index + 1}"] = convolution(
                widths[index], widths[index + 1], kernel, stride if index == form.strided else 1
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
        first: channels behind the first convolution.
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
        noise: what stands at which site, see the head of this module.
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
                channels = inside * BLOCK_FORMS[shape.block].expansion
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
