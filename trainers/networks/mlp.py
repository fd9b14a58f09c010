"""A multi-layer perceptron in which the noise stands directly upstream, or downstream, of each BN.

    layer    Linear, ReLU, [noise of site a], BN, [noise of site b]
    network  flatten, layer x n, [noise of site last], Linear

Without convolutions every feature has one value per image, so little data gives poor statistics: the hard case for a
re-estimation of BN.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from vsfix.trainers.layers.noise_layers import make_noise_layer
from vsfix.trainers.layers.noise_sites import NO_NOISE, NoiseSites

_HIDDEN = 256


class Mlp(nn.Module):
    """The network.

    Shapes: (N, ...) with `in_features` values after the first axis -> (N, num_classes).

    Args:
        layers: hidden layers, at least 1.
        in_features: values of one image.
        num_classes: outputs.
        width: the factor on 256 hidden units.
        noise: of each site, see the head of this module.
    """

    def __init__(
        self,
        layers: int,
        in_features: int,
        num_classes: int,
        *,
        width: int = 1,
        noise: NoiseSites = NO_NOISE,
    ) -> None:
        super().__init__()
        hidden = _HIDDEN * width
        sizes = [in_features] + [hidden] * layers
        self.layers = nn.Sequential(*(_layer(inputs, hidden, noise) for inputs in sizes[:-1]))
        self.noise = make_noise_layer(noise.last)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, shape (N, num_classes)."""
        logits: torch.Tensor = self.classifier(self.noise(self.layers(x.flatten(1))))
        return logits


def _layer(inputs: int, hidden: int, noise: NoiseSites) -> nn.Sequential:
    """One hidden layer, (N, inputs) -> (N, hidden)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(linear=nn.Linear(inputs, hidden), relu=nn.ReLU(inplace=True))
    layers.update(noise.layers("a"))
    layers["bn"] = nn.BatchNorm1d(hidden)
    layers.update(noise.layers("b"))
    return nn.Sequential(layers)
