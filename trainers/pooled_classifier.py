"""How every network for images ends: mean over positions, noise of site last, classifier."""

from __future__ import annotations

import torch
from torch import nn


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
