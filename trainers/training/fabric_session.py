"""Starts lightning-fabric (device, precision, processes), shares the work, and cleans up after itself.

One process takes the first GPU, or the CPU. Under `torchrun` each process takes one device and they train together.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from vsfix.graph_passes.errors import InputError, MissingComponentError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_Value = TypeVar("_Value")


@contextmanager
def fabric_session(precision: str) -> Iterator[Fabric]:
    """Yields a launched Fabric; the process's random state is the caller's again afterwards.

    Args:
        precision: "32", "bf16", or "auto": bf16 on a GPU, 32 on a CPU.

    Raises:
        MissingComponentError: lightning-fabric is not installed.
        InputError: more processes than GPUs on this machine.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError:
        raise MissingComponentError(
            "training: lightning-fabric is not installed; run: pip install 'vsfix[train]'"
        ) from None
    on_gpu = torch.cuda.is_available()
    nodes, devices = _processes()
    if on_gpu and devices > torch.cuda.device_count():
        raise InputError(f"torchrun: {devices} processes for {torch.cuda.device_count()} GPUs; lower --nproc-per-node")
    group_was_there = _has_process_group()
    with _quiet_lightning():
        fabric = Fabric(
            accelerator="cuda" if on_gpu else "cpu",
            strategy="ddp" if nodes * devices > 1 else "auto",
            devices=devices,
            num_nodes=nodes,
            precision="bf16-mixed" if precision == "bf16" or (precision == "auto" and on_gpu) else "32-true",
        )
        fabric.launch()
    try:
        # Seeding reaches every GPU, so the state of every GPU is put back.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if on_gpu else []):
            yield fabric
        # A process that is done waits for the one that still writes, or its end would take the other with it.
        fabric.barrier()
    finally:
        if _has_process_group() and not group_was_there:
            # What trained in parallel holds on to the group. Left to the end of the interpreter, the group's threads
            # are torn down under its feet, and now and then the process aborts. Where an error passes through here,
            # its traceback holds the frames that hold the network.
            if (error := sys.exc_info()[1]) is not None:
                traceback.clear_frames(error.__traceback__)
            gc.collect()
            torch.distributed.destroy_process_group()


def is_first_process() -> bool:
    """Whether this is the process that writes: the only one, or the first under torchrun."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"


def _processes() -> tuple[int, int]:
    """Machines, and processes on each of them; (1, 1) without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 1, 1
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ["WORLD_SIZE"]) // here, here


def _has_process_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Fabric reports its choices and advertises its options on stderr; the log here is vsfix's own."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning_fabric\.")
            yield
    finally:
        logger.setLevel(level)


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
        """The part of this process, of images in their joint order."""
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
