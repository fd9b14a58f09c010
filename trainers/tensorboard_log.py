"""The metrics of a run as TensorBoard events, beside its other files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from vsfix.graph_passes.errors import MissingComponentError

from .checkpoint import EpochMetrics
from .shift_log import BatchNormShift

MetricsLog = Callable[[EpochMetrics, Sequence[BatchNormShift]], None]
"""Takes what an epoch came to."""


@contextmanager
def tensorboard_log(folder: Path, finished: int) -> Iterator[MetricsLog]:
    """Yields what logs an epoch.

    Args:
        folder: where the event files go; what an earlier call wrote stays.
        finished: how many epochs an earlier call has finished; what it may have written of later ones is dropped.

    Raises:
        MissingComponentError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingComponentError(
            "training: tensorboard is not installed; run: pip install 'vsfix[tensorboard]'"
        ) from None

    def log(metrics: EpochMetrics, shift: Sequence[BatchNormShift]) -> None:
        for name, value in asdict(metrics).items():
            if name != "epoch":
                writer.add_scalar(name, value, metrics.epoch)
        for row in shift:
            writer.add_scalar(f"shift_ratio/{row.batch_norm}", row.shift_ratio, row.epoch)
        writer.flush()

    writer = SummaryWriter(str(folder), purge_step=finished + 1)
    try:
        yield log
    finally:
        writer.close()
