"""The folder of one training run and the rules by which a run may use it.

    checkpoint.pt    the truth: the state of the run
    config.json      the configuration, for people and scripts
    metrics.csv      one row per finished epoch: epoch, train_loss, test_accuracy (empty where it was not measured),
                     seconds, learning_rate, images_per_second
    shift.csv        one row per logged epoch and BatchNorm: epoch, batch_norm, shift_ratio, mismatch
    tensorboard/     event files, where they are asked for

The CSV and JSON files are views of the first. Each file appears whole; the checkpoint comes first, so that a run that
is killed between two files can bring the views up to date when it goes on.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from vsfix.graph_passes.errors import InputError, MissingComponentError, OutputExistsError
from vsfix.graph_passes.io.atomic_file import atomic_path
from vsfix.graph_passes.io.temporary_files import HAS_LOCKS, take_lock

from .checkpoint import Checkpoint, EpochMetrics, load_checkpoint, save_checkpoint
from .shift_log import BatchNormShift
from .training_config import TrainingConfig

_Row = TypeVar("_Row", EpochMetrics, BatchNormShift)
MetricsLog = Callable[[EpochMetrics, Sequence[BatchNormShift]], None]
"""Takes what an epoch came to."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, and the files in it.

    Attributes:
        path: the folder; `open_for` makes it where it is missing.
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The file that decides."""
        return self.path / "checkpoint.pt"

    @property
    def config(self) -> Path:
        """The configuration as JSON."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """The metrics as CSV."""
        return self.path / "metrics.csv"

    @property
    def shift(self) -> Path:
        """The shift of each BatchNorm over the epochs as CSV; there is none where it was not logged."""
        return self.path / "shift.csv"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs out of the folder, which is made where it is missing, for as long as the context lasts.

        Raises:
            InputError: the folder can't be made, or another process trains into it.
        """
        self._make()
        try:
            descriptor = os.open(self.path, os.O_RDONLY) if HAS_LOCKS else None
        except OSError as error:
            raise InputError(f"{self.path}: can't be read ({error.strerror})") from error
        try:
            if descriptor is not None and take_lock(descriptor) is False:
                raise InputError(f"{self.path}: another process trains into it; wait for it, or name another folder")
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def open_for(self, config: TrainingConfig, *, force: bool) -> Checkpoint | None:
        """Makes the folder ready and finds where a run of `config` goes on.

        Args:
            config: the run that wants the folder.
            force: start again, whatever the folder holds. The old checkpoint stays until a new one replaces it.

        Returns:
            The checkpoint to go on from, or None for a fresh start.

        Raises:
            InputError: the folder can't be made, or holds the run of another configuration.
            OutputExistsError: the folder holds files of these names that belong to no run.
            ModelError: the checkpoint in the folder is damaged.
        """
        self._make()
        if force:
            return None
        if not self.checkpoint.exists():
            for view in (self.config, self.metrics, self.shift):
                if view.exists():
                    raise OutputExistsError(f"{view}: belongs to no training run here; pass --force to replace it")
            return None
        checkpoint = load_checkpoint(self.checkpoint)
        changed = _differences(checkpoint.training, config)
        if changed:
            raise InputError(
                f"{self.path}: holds a run of another configuration ({changed});"
                " pass --force to start again, or name another folder"
            )
        return checkpoint

    def _make(self) -> None:
        """Makes the folder where it is missing."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: can't make the folder ({error.strerror})") from None

    def remove_if_empty(self) -> None:
        """Takes the folder away again where a run could not begin; folders above it stay."""
        with suppress(OSError):
            self.path.rmdir()

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes the checkpoint, then its views."""
        save_checkpoint(checkpoint, self.checkpoint)
        self.write_views(checkpoint)

    def write_views(self, checkpoint: Checkpoint) -> None:
        """Brings the views up to date; a file that is right already is not touched."""
        _write_if_changed(self.config, json.dumps(checkpoint.training.to_dict(), indent=2) + "\n")
        _write_if_changed(self.metrics, _table(EpochMetrics, checkpoint.metrics))
        if checkpoint.shift:
            _write_if_changed(self.shift, _table(BatchNormShift, checkpoint.shift))
        else:
            self.shift.unlink(missing_ok=True)


def _table(kind: type[_Row], rows: Sequence[_Row]) -> str:
    """Rows of a dataclass as CSV, with a header."""
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return table.getvalue()


def _differences(old: TrainingConfig, new: TrainingConfig) -> str:
    """The fields in which two configurations differ, with both values; empty where they don't."""
    before, after = old.to_dict(), new.to_dict()
    return ", ".join(f"{name} was {before[name]}, is {after[name]}" for name in after if before[name] != after[name])


def _write_if_changed(path: Path, text: str) -> None:
    content = text.encode()
    if path.is_file() and path.read_bytes() == content:
        return
    with atomic_path(path, force=True) as temporary:
        temporary.write_bytes(content)


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
            if name != "epoch" and value is not None:
                writer.add_scalar(name, value, metrics.epoch)
        for row in shift:
            writer.add_scalar(f"shift_ratio/{row.batch_norm}", row.shift_ratio, row.epoch)
        writer.flush()

    writer = SummaryWriter(str(folder), purge_step=finished + 1)
    try:
        yield log
    finally:
        writer.close()
