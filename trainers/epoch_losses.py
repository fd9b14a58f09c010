"""The losses of one epoch, step by step, checked now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STEPS_BETWEEN_CHECKS = 50


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
