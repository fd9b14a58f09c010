"""What one of several processes does of the work that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_Value = TypeVar("_Value")


class ProcessShare:
    """This process among those of a run.

    Attributes:
        rank: its number.
        processes: how many there are.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.rank, self.processes = fabric.global_rank, fabric.world_size

    @property
    def is_shared(self) -> bool:
        """Whether there are others."""
        return self.processes > 1

    @property
    def rows(self) -> slice:
        """What falls to this process, of images in their joint order."""
        return slice(self.rank, None, self.processes)

    def gather(self, value: _Value) -> list[_Value]:
        """The values of all processes, in their order; all call this together."""
        if not self.is_shared:
            return [value]
        together = [value] * self.processes
        torch.distributed.all_gather_object(together, value)
        return together

    def take_buffers_of_first(self, module: nn.Module) -> None:
        """Gives every process the buffers that the first one has; all call this together."""
        if self.is_shared:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)
