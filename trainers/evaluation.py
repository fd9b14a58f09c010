"""Top-1 accuracy of a module over labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every part of the module is in its former mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part, training in modes:
            part.training = training


def count_right(module: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> tuple[int, int]:
    """Counts right answers in eval mode.

    Args:
        module: the network.
        batches: preprocessed images, float, shape (N, C, h, w), and their classes, int64, shape (N,), on its device.

    Returns:
        (right answers, images).
    """
    right: torch.Tensor | int = 0
    total = 0
    with evaluating(module):
        for images, classes in batches:
            right = right + (module(images).argmax(dim=1) == classes).sum()
            total += len(classes)
    return int(right), total
