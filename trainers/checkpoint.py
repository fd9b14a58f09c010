"""The file in which a training run stands after an epoch: enough to go on, to export, to evaluate.

One `torch.save` file of tensors, dicts, lists, strings and numbers. It is read with `weights_only=True`, so that no
code in it is ever executed. The state of the random generators is not in it: everything random in an epoch follows
from the seed and the epoch's number (see `training_loop`).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vsfix.graph_passes.atomic_file import atomic_path
from vsfix.graph_passes.errors import InputError, ModelError

from .network import NetworkConfig, build_network
from .preprocessing import Preprocessing
from .training_config import TrainingConfig

FORMAT = "vsfix-checkpoint"
VERSION = 1
_FIELDS = {"training", "preprocessing", "model", "optimizer", "scheduler", "metrics"}


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch came to.

    Attributes:
        epoch: counted from 1.
        train_loss: mean cross-entropy over the epoch's steps, noise on, in nats.
        test_accuracy: top-1 share of the test images in eval mode, in [0, 1].
        seconds: the time that the epoch took, evaluation included.
    """

    epoch: int
    train_loss: float
    test_accuracy: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network with all that belongs to it.

    Attributes:
        training: the configuration of the run.
        preprocessing: what the network expects of its input.
        model: the network's state_dict, on the CPU.
        optimizer: the optimizer's state_dict.
        scheduler: the state_dict of the learning rate's schedule.
        metrics: one entry for each finished epoch.
    """

    training: TrainingConfig
    preprocessing: Preprocessing
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    metrics: tuple[EpochMetrics, ...]

    @property
    def network(self) -> NetworkConfig:
        """The configuration of the network alone."""
        return self.training.network

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.metrics)

    def build(self) -> nn.Module:
        """The network with these weights, on the CPU, in eval mode.

        Raises:
            ModelError: the weights don't belong to this network.
        """
        module = build_network(self.network)
        try:
            module.load_state_dict(self.model, strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"checkpoint: the weights don't fit its network: {reason}") from None
        return module.eval()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the file whole, in the place of an older one.

    Raises:
        InputError: the path can't be written.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "training": checkpoint.training.to_dict(),
        "preprocessing": checkpoint.preprocessing.to_json(),
        "model": dict(checkpoint.model),
        "optimizer": checkpoint.optimizer,
        "scheduler": checkpoint.scheduler,
        "metrics": [asdict(metrics) for metrics in checkpoint.metrics],
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
    content = _read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelError(f"{path}: no vsfix checkpoint; `vsfix train` writes one, other weights go with --weights")
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
        )
    except (InputError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: the checkpoint is damaged ({error}); train again") from None


def _read(path: Path) -> Any:
    """The content of a torch file, whatever it is."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the checkpoint.pt that `vsfix train` wrote")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about other kinds of file before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged file surfaces as whatever error the unpickler stumbles into, so no narrower class will do.
        reason = str(error).strip().split("\n")[0][:120]
        raise ModelError(
            f"{path}: can't be read as a checkpoint: damaged, or it holds code, which is never run"
            f" ({type(error).__name__}: {reason})"
        ) from None


def _tensors(state: object) -> dict[str, torch.Tensor]:
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError("'model' is no state_dict")
    return dict(state)


def _state(content: dict[str, Any], field: str) -> dict[str, Any]:
    state = content[field]
    if not isinstance(state, dict):
        raise ValueError(f"'{field}' is no state_dict")
    return state


def _metrics(rows: object) -> tuple[EpochMetrics, ...]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("'metrics' is no list of epochs")
    metrics = tuple(EpochMetrics(**row) for row in rows)
    if [row.epoch for row in metrics] != list(range(1, len(metrics) + 1)):
        raise ValueError("'metrics' misses an epoch")
    return metrics
