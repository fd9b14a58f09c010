"""Densely connected networks with bottlenecks and compression (DenseNet-BC): each layer sees all layers of its block.

    layer        x -> [x, conv3x3_k(relu(bn2(conv1x1_4k(relu(bn1(x))))))]        k channels more, k the growth rate
    block        n layers
    transition   avgpool2(conv1x1(relu(bn(x))))                                  half the channels, half the image
    network      conv3x3 to 2k channels, block, transition, block, transition, block, BN, ReLU, mean, classifier

The depth is 6n+4: 2 convolutions in each of the 3n layers, the first one, those of the transitions, the classifier.

The noise of site a stands directly upstream of the second BN of each layer; of site b, between the ReLU of that BN and
the 3x3 convolution; of site last, between the mean after the last BN and ReLU and the classifier.

Sources: Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR 2017, arXiv
1608.06993; the sites are those of Li, Chen, Hu, Yang, CVPR 2019, arXiv 1801.05134.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from vsfix.trainers.layers.image_layers import blocks_of_depth, classify_pooled, convolution, initialize_he
from vsfix.trainers.layers.noise_layers import make_noise_layer
from vsfix.trainers.layers.noise_sites import NO_NOISE, NoiseSites

_BLOCKS = 3
_BOTTLENECK = 4  # channels inside a layer over the growth rate
dense_layers_per_block = partial(blocks_of_depth, layers=2 * _BLOCKS, others=4, examples="22, 40 or 100")


class DenseLayer(nn.Module):
    """One layer of a block.

    Shapes: (N, in_channels, H, W) -> (N, in_channels + growth, H, W), the input first.
    """

    def __init__(self, in_channels: int, growth: int, noise: NoiseSites) -> None:
        super().__init__()
        inside = _BOTTLENECK * growth
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            bn1=nn.BatchNorm2d(in_channels),
            relu1=nn.ReLU(inplace=True),
            conv1=convolution(in_channels, inside, 1),
        )
        layers.update(noise.layers("a"))
        layers["bn2"] = nn.BatchNorm2d(inside)
        layers["relu2"] = nn.ReLU(inplace=True)
        layers.update(noise.layers("b"))
        layers["conv2"] = convolution(inside, growth, 3)
        self.body = nn.Sequential(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Appends the body's output to the input's channels; shapes as above."""
        return torch.cat([x, self.body(x)], 1)


class DenseNet(nn.Module):
    """The network.

    Shapes: (N, in_channels, H, W) with H and W of at least 8 -> (N, num_classes).

    Args:
        depth: 6n+4, n of at least 1.
        growth: the growth rate k, at least 1.
        in_channels: channels of the images.
        num_classes: outputs.
        width: the factor on the growth rate, and with it on each number of channels.
        noise: of each site, see the head of this module.

    Raises:
        InputError: the depth does not fit.
    """

    def __init__(
        self,
        depth: int,
        growth: int,
        in_channels: int,
        num_classes: int,
        *,
        width: int = 1,
        noise: NoiseSites = NO_NOISE,
    ) -> None:
        super().__init__()
        count = dense_layers_per_block(depth)
        rate = growth * width
        channels = 2 * rate
        self.conv = convolution(in_channels, channels, 3)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for index in range(1, _BLOCKS + 1):
            if index > 1:
                parts[f"transition{index - 1}"] = _transition(channels)
                channels //= 2
            parts[f"block{index}"] = nn.Sequential(
                *(DenseLayer(channels + position * rate, rate, noise) for position in range(count))
            )
            channels += count * rate
        self.features = nn.Sequential(parts)
        self.bn = nn.BatchNorm2d(channels)
        self.noise = make_noise_layer(noise.last)
        self.classifier = nn.Linear(channels, num_classes)
        initialize_he(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, shape (N, num_classes)."""
        x = F.relu(self.bn(self.features(self.conv(x))), inplace=True)
        return classify_pooled(x, self.noise, self.classifier)


def _transition(channels: int) -> nn.Sequential:
    """The layers between two blocks, (N, C, H, W) -> (N, C // 2, H // 2, W // 2)."""
    return nn.Sequential(
        OrderedDict(
            bn=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
            conv=convolution(channels, channels // 2, 1),
            pool=nn.AvgPool2d(2),
        )
    )
