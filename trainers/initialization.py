"""How the weights of the residual and dense networks begin."""

from __future__ import annotations

from torch import nn


def initialize_he(network: nn.Module) -> None:
    """He initialization, N(0, 2 / fan_out), of the convolutions; the classifier keeps torch's, with a bias of 0.

    Source: He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", ICCV 2015, arXiv 1502.01852.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
