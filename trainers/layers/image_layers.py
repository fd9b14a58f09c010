"""The parts that the networks for images share: convolution, squeeze-and-excitation, classifier, weights, depth."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.errors import InputError


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of the image but for its stride; the BN downstream has the bias.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)), for an odd kernel.
    """
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class SqueezeExcitation(nn.Module):
    """Weighs the channels by what their means say.

    Shapes: (N, C, H, W), unchanged.
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


def initialize_he(network: nn.Module) -> None:
    """He initialization, N(0, 2 / fan_out), of the convolutions; the classifier keeps torch's, with a bias of 0.

    Source: He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", ICCV 2015, arXiv 1502.01852.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def classify_pooled(x: torch.Tensor, noise: nn.Module, classifier: nn.Module) -> torch.Tensor:
    """Logits of the means over the positions.

    Args:
        x: shape (N, C, H, W).
        noise: on (N, C, 1, 1).
        classifier: (N, C) -> (N, num_classes).

    Returns:
        Shape (N, num_classes).
    """
    # Dropout2d expects images, so the positions stay as axes of length 1 until the noise is on.
    pooled = noise(x.mean((2, 3), keepdim=True))  # (N, C, 1, 1)
    logits: torch.Tensor = classifier(pooled.flatten(1))
    return logits


def blocks_of_depth(depth: int, layers: int, others: int, examples: str) -> int:
    """The n of a depth of layers * n + others.

    Args:
        depth: layers with weights on the longest path.
        layers: what one block more in each stage adds.
        others: what there is beside the blocks.
        examples: depths that fit, in words.

    Raises:
        InputError: the depth does not fit.
    """
    count, rest = divmod(depth - others, layers)
    if rest or count < 1:
        raise InputError(f"the depth must be {layers}n+{others} with n of at least 1, as in {examples}, not {depth}")
    return count
