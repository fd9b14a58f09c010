"""The loss of a batch whose images may be mixed with each other (see mixup in `augmentation`)."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def mixed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, share: float, smoothing: float) -> torch.Tensor:
    """Cross-entropy, smoothed; of mixed images, mixed: l CE(y) + (1 - l) CE(y'), y' the labels from the end.

    Args:
        logits: shape (N, num_classes).
        labels: int64, shape (N,).
        share: l, what each image has of itself; 1 where nothing is mixed.
        smoothing: what of each label is spread over all classes, in [0, 1).

    Returns:
        The mean over the batch, shape ().
    """
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if share == 1:
        return loss
    return share * loss + (1 - share) * F.cross_entropy(logits, labels.flip(0), label_smoothing=smoothing)
