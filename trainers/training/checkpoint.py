"""The file that holds the state of a training run: enough to go on, to export, to evaluate.

One `torch.save` file of tensors, dicts, lists, strings and numbers (`torch_file`); no code in it is ever executed.
Between two epochs no state of a random generator belongs to it, because everything random in an epoch follows from the
seed and the epoch's number; in the middle of one it does (`EpochPosition`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from vsfix.graph_passes.errors import InputError, ModelError
from vsfix.graph_passes.io.atomic_file import atomic_path
from vsfix.graph_passes.io.named_file import why_unreadable
from vsfix.trainers.data.preprocessing import Preprocessing
from vsfix.trainers.data.torch_file import is_state_dict, read_torch_file
from vsfix.trainers.networks.network import NetworkConfig, build_network

from .shift_log import BatchNormShift
from .training_config import TrainingConfig

FORMAT = "vsfix-checkpoint"
VERSION = 2
_FIELDS = {"training", "preprocessing", "model", "average", "optimizer", "scheduler", "metrics", "shift", "position"}


@dataclass(frozen=True)
class EpochMetrics:
    """The figures of one epoch.

    Attributes:
        epoch: counted from 1.
        train_loss: mean cross-entropy over the epoch's steps, noise on, in nats.
        test_accuracy: top-1 share of the test images in eval mode, in [0, 1]; None where the epoch was not evaluated.
        seconds: the time that the epoch took, evaluation included.
        learning_rate: of the epoch's last step.
        images_per_second: trained on by all devices together, without the evaluation.
    """

    epoch: int
    train_loss: float
    test_accuracy: float | None
    seconds: float
    learning_rate: float
    images_per_second: float


@dataclass(frozen=True, eq=False)
class EpochPosition:
    """The position in an epoch of a run that was stopped in its middle.

    Attributes:
        losses: of the steps that are done, float32, shape (steps,).
        seconds: what they took.
        random: one entry for each process: the states of its generators by device, "cpu" and "cuda".
    """

    losses: torch.Tensor
    seconds: float
    random: tuple[dict[str, torch.Tensor], ...]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network with all that belongs to it.

    Attributes:
        training: the configuration of the run.
        preprocessing: what the network expects of its input.
        model: the network's state_dict.
        average: the state_dict of its moving average, or None where there is none.
        optimizer: the optimizer's state_dict.
        scheduler: the state_dict of the learning rate's schedule.
        metrics: one entry for each finished epoch.
        shift: what was logged of the BatchNorms.
        position: in the epoch after the finished ones; None at its beginning.
    """

    training: TrainingConfig
    preprocessing: Preprocessing
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    metrics: tuple[EpochMetrics, ...]
    average: dict[str, torch.Tensor] | None = None
    shift: tuple[BatchNormShift, ...] = ()
    position: EpochPosition | None = None

    @property
    def network(self) -> NetworkConfig:
        """The configuration of the network alone."""
        return self.training.network

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.metrics)

    def build(self) -> nn.Module:
        """The network with these weights, or their average where there is one, on the CPU, in eval mode.

        Raises:
            ModelError: the weights don't belong to this network.
        """
        state = self.model if self.average is None else self.average
        self._require_size(state)
        module = build_network(self.network)
        try:
            module.load_state_dict(state, strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"checkpoint: the weights don't fit its network: {reason}") from None
        return module.eval()

    def _require_size(self, state: Mapping[str, torch.Tensor]) -> None:
        """Refuses weights of another network before memory is taken for that one; its name and width are only said."""
        try:
            with torch.device("meta"):
                wanted = build_network(self.network).state_dict()
        except (RuntimeError, TypeError, OverflowError):  # sides whose product is no number of torch
            raise ModelError("checkpoint: the weights don't fit its network: it is larger than any memory") from None
        for name, tensor in wanted.items():
            found = state.get(name)
            if found is None or found.shape != tensor.shape or not torch.can_cast(found.dtype, tensor.dtype):
                held = "nothing" if found is None else f"{found.dtype} of shape {list(found.shape)}"
                raise ModelError(
                    f"checkpoint: the weights don't fit its network: '{name}' is {tensor.dtype} of shape "
                    f"{list(tensor.shape)} there, and the file holds {held} for it; train again"
                )


_Row = TypeVar("_Row", EpochMetrics, BatchNormShift)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the file whole, instead of an older one.

    Raises:
        InputError: the path can't be written.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "training": checkpoint.training.to_dict(),
        "preprocessing": checkpoint.preprocessing.to_json(),
        "model": dict(checkpoint.model),
        "average": checkpoint.average,
        "optimizer": checkpoint.optimizer,
        "scheduler": checkpoint.scheduler,
        "metrics": [asdict(metrics) for metrics in checkpoint.metrics],
        "shift": [asdict(row) for row in checkpoint.shift],
        "position": None if checkpoint.position is None else vars(checkpoint.position),
    }
    # Serialized in memory first: torch's own file writer turns a full disk into a RuntimeError without the reason.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(path, force=True) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU; code in the file is refused, not run.

    Raises:
        ModelError: the file is missing or damaged, is no vsfix checkpoint, or has another version.
    """
    if (reason := why_unreadable(path)) is not None:
        raise ModelError(f"{path}: {reason}; give the checkpoint.pt that `vsfix train` wrote")
    content = read_torch_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelError(
            f"{path}: no vsfix checkpoint, as `vsfix train` writes; other weights go with the function that makes a "
            f"module for them, package.module:function --weights {path}"
        )
    if content.get("version") != VERSION:
        raise ModelError(f"{path}: checkpoint version {content.get('version')!r}, but this vsfix reads {VERSION}")
    missing = sorted(_FIELDS - set(content))
    if missing:
        raise ModelError(f"{path}: the checkpoint lacks {', '.join(missing)}; train again")
    try:
        return Checkpoint(
            training=TrainingConfig.from_dict(content["training"]),
            preprocessing=Preprocessing.from_json(content["preprocessing"]),
            model=_tensors(content["model"]),
            optimizer=_state(content, "optimizer"),
            scheduler=_state(content, "scheduler"),
            metrics=_metrics(content["metrics"]),
            average=None if content["average"] is None else _tensors(content["average"]),
            shift=_rows(BatchNormShift, content["shift"]),
            position=_position(content["position"]),
        )
    except (InputError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: the checkpoint is damaged ({error}); train again") from None


def _tensors(state: object) -> dict[str, torch.Tensor]:
    if not is_state_dict(state):
        raise ValueError("no state_dict where one belongs")
    return dict(cast("Mapping[str, torch.Tensor]", state))


def _state(content: dict[str, Any], field: str) -> dict[str, Any]:
    state = content[field]
    if not isinstance(state, dict):
        raise ValueError(f"'{field}' is no state_dict")
    return state


def _metrics(rows: object) -> tuple[EpochMetrics, ...]:
    metrics = _rows(EpochMetrics, rows)
    if [row.epoch for row in metrics] != list(range(1, len(metrics) + 1)):
        raise ValueError("'metrics' misses an epoch")
    return metrics


def _rows(kind: type[_Row], rows: object) -> tuple[_Row, ...]:
    """Rows of plain values, each with the fields of `kind` and no others."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"no list of {kind.__name__} where one belongs")
    return tuple(kind(**row) for row in rows)


def _position(position: object) -> EpochPosition | None:
    if position is None:
        return None
    if not isinstance(position, dict) or set(position) != {"losses", "seconds", "random"}:
        raise ValueError("'position' is none")
    losses, seconds, random = position["losses"], position["seconds"], position["random"]
    if not isinstance(losses, torch.Tensor) or losses.dim() != 1 or not isinstance(seconds, float):
        raise ValueError("'position' is none")
    if not isinstance(random, tuple) or not random:
        raise ValueError("'position' holds no state of a random generator")
    return EpochPosition(losses, seconds, tuple(_tensors(states) for states in random))
