"""The figures of an epoch: the losses of its steps, and top-1 over the test images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from .fabric_session import ProcessShare
from .training_data import TrainingData

if TYPE_CHECKING:
    from lightning_fabric import Fabric

EVALUATION_BATCH = 500
STEPS_BETWEEN_CHECKS = 50


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switches each part of the module to eval mode, and back to what it was."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
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
    with eval_mode(module), torch.inference_mode():
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


class EpochLosses:
    """The losses of the steps that are done, on the device.

    Attributes:
        done: how many steps are done.
    """

    def __init__(self, steps: int, fabric: Fabric, before: torch.Tensor | None = None) -> None:
        self.done = 0 if before is None else len(before)
        self._values = torch.zeros(steps, device=fabric.device)
        self._fabric = fabric
        if before is not None:
            self._values[: self.done] = before.to(fabric.device)

    def add(self, loss: torch.Tensor) -> None:
        """Takes the loss of the next step."""
        self._values[self.done] = loss
        self.done += 1

    @property
    def is_check_due(self) -> bool:
        """Whether the losses are to be looked at after this step.

        Not after each one, because reading a number makes the program wait for the GPU.
        """
        return self.done % STEPS_BETWEEN_CHECKS == 0 or self.done == len(self._values)

    def find_bad(self) -> tuple[int, float] | None:
        """The first step, counted from 1, whose loss is not finite, and that loss; None where all are finite.

        All processes call this together; afterwards each holds the means over all of them.
        """
        together = self._fabric.all_reduce(self._values, reduce_op="mean")
        assert isinstance(together, torch.Tensor)
        self._values = together
        bad = torch.nonzero(~torch.isfinite(together))
        return (int(bad[0]) + 1, float(together[bad[0]])) if len(bad) else None

    def so_far(self) -> torch.Tensor:
        """Those of the steps that are done, on the CPU, float32, shape (done,)."""
        return self._values[: self.done].cpu()

    def mean(self) -> float:
        """Over all steps of the epoch."""
        return float(self._values.mean())
