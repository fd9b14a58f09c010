"""One training run of an experiment, and what is measured of the trained network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from vsfix.graph_passes.io.model_file import read_model
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from vsfix.pipeline.comparison.accuracy import accuracy_of
from vsfix.pipeline.data.calibration import calibration_batches, labelled_samples
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.trainers.export.exporting import export_checkpoint
from vsfix.trainers.training.checkpoint import Checkpoint, load_checkpoint
from vsfix.trainers.training.shift_log import BatchNormShift
from vsfix.trainers.training.training_config import TrainingConfig
from vsfix.trainers.training.training_loop import TrainingOptions, train

RE_ESTIMATED, PAIRED = "re-estimated", "paired"
REPAIRS: Mapping[str, tuple[RepairConfig, int]] = {
    RE_ESTIMATED: (RepairConfig("exact", "all"), 1000),
    PAIRED: (RepairConfig("paired"), 32),
}
"""The repairs that are measured, each with its number of unlabelled training images."""
_BATCH_SIZE = 250
_LOGGED_EPOCHS = 20


@dataclass(frozen=True)
class Trial:
    """One run of a grid.

    Attributes:
        training: what is trained; it decides the identity of the run.
        repaired: whether the repairs of the trained network are measured too.
    """

    training: TrainingConfig
    repaired: bool = False

    @property
    def key(self) -> str:
        """A key that is equal for equal configurations, whichever experiment asks for them.

        A field that has its default value plays no part, so that an option that is new makes no finished run unknown.
        """
        text = json.dumps(_not_default(self.training), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TrialResult:
    """The result of a run.

    Attributes:
        accuracy: top-1 share of the test images as trained, in [0, 1].
        train_loss: of the last epoch, noise on, in nats.
        seconds: of the training.
        images_per_second: in the last epoch.
        shift: every logged epoch's shift of every BatchNorm, in the order of the network.
        behind_noise: the names of the BatchNorms that stand directly downstream of a noise layer.
        repairs: top-1 after each of `REPAIRS`, by its name; None where they were not asked for.
    """

    accuracy: float
    train_loss: float
    seconds: float
    images_per_second: float
    shift: tuple[BatchNormShift, ...]
    behind_noise: tuple[str, ...]
    repairs: Mapping[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` gives back an equal object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialResult:
        """Reads what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        numbers = ("accuracy", "train_loss", "seconds", "images_per_second")
        repairs = values["repairs"]
        for number in [values[name] for name in numbers] + list((repairs or {}).values()):
            if not isinstance(number, int | float):
                raise TypeError(f"{number!r} is no number")
        shift = tuple(BatchNormShift(**row) for row in values["shift"])
        return cls(**{**values, "shift": shift, "behind_noise": tuple(values["behind_noise"])})


def run_trial(trial: Trial, folder: Path, threads: int | None = None) -> TrialResult:
    """Trains, or goes on with what stands in the folder, and measures.

    Args:
        trial: what to run.
        folder: of the training run.
        threads: of torch on a CPU; None leaves it as it is.

    Raises:
        VsfixError: see `train`.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        every = max(1, trial.training.epochs // _LOGGED_EPOCHS)
        train(trial.training, folder, TrainingOptions(log_shift=every))
        checkpoint = load_checkpoint(folder / "checkpoint.pt")
        last = checkpoint.metrics[-1]
        return TrialResult(
            accuracy=last.test_accuracy,
            train_loss=last.train_loss,
            seconds=sum(metrics.seconds for metrics in checkpoint.metrics),
            images_per_second=last.images_per_second,
            shift=checkpoint.shift,
            behind_noise=_downstream_of_noise(checkpoint.build()),
            repairs=_repairs(checkpoint, folder) if trial.repaired else None,
        )
    finally:
        torch.set_num_threads(before)


def _not_default(value: Any) -> Any:
    """A dataclass as the fields that are not as they are by default; anything else as it is, or as a text."""
    if not is_dataclass(value):
        return value if isinstance(value, str | int | float | tuple | None) else str(value)
    kept = {}
    for entry in fields(value):
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        if getattr(value, entry.name) != default:
            kept[entry.name] = _not_default(getattr(value, entry.name))
    return kept


def _downstream_of_noise(module: nn.Module) -> tuple[str, ...]:
    """The BatchNorms whose input is a noise layer's output: in our networks they follow it in one Sequential."""
    found = []
    for name, part in module.named_modules():
        children = list(part.named_children()) if isinstance(part, nn.Sequential) else []
        for (noise, _), (child, layer) in pairwise(children):
            if noise.startswith("noise") and isinstance(layer, nn.modules.batchnorm._BatchNorm):
                found.append(f"{name}.{child}")
    return tuple(found)


def _repairs(checkpoint: Checkpoint, folder: Path) -> dict[str, float]:
    """Top-1 of the exported network after each repair."""
    exported = folder / "model.onnx"
    export_checkpoint(checkpoint, exported, force=True)
    model = read_model(exported)
    return {name: _repaired_accuracy(model, checkpoint.training, *how) for name, how in REPAIRS.items()}


def _repaired_accuracy(model: onnx.ModelProto, training: TrainingConfig, config: RepairConfig, images: int) -> float:
    batches: list[Batch] = list(
        calibration_batches(
            model, training.data, samples=images, batch_size=_BATCH_SIZE, seed=training.seed, at_most=True
        )
    )
    repaired = repair_model(model, batches, open_for_small_runs, config).model
    labelled = labelled_samples(model, training.data, split="test", seed=0)
    with OnnxRuntimeRunner(repaired) as runner:
        return accuracy_of("repaired", runner, labelled, batch_size=_BATCH_SIZE).score.value / 100
