"""Top-1 accuracy of a module over labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from .process_share import ProcessShare
from .training_data import TrainingData

if TYPE_CHECKING:
    from lightning_fabric import Fabric

EVALUATION_BATCH = 500


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


def shared_accuracy(module: nn.Module, data: TrainingData, fabric: Fabric) -> float:
    """Top-1 on the test images, of which each process takes its part; all call this together."""
    rows = torch.arange(len(data.test_labels))[ProcessShare(fabric).rows]
    batches = torch.split(rows, EVALUATION_BATCH) if len(rows) else ()
    images = data.test_images.batches(batches, 0)
    labels = (data.test_labels[batch.to(fabric.device)] for batch in batches)
    counts = torch.tensor(count_right(module, zip(images, labels, strict=True)), device=fabric.device)
    together = fabric.all_reduce(counts, reduce_op="sum")
    assert isinstance(together, torch.Tensor)
    return int(together[0]) / int(together[1])
