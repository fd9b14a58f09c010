"""One training run of an experiment, and what is measured of the trained network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from vsfix.graph_passes.io.model_file import read_model
from vsfix.graph_passes.statistics.batches import Batch, first_samples
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from vsfix.pipeline.comparison.accuracy import accuracy_of
from vsfix.pipeline.data.calibration import calibration_batches, labelled_samples, model_input_names
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.trainers.export.exporting import export_checkpoint
from vsfix.trainers.training.checkpoint import Checkpoint, load_checkpoint
from vsfix.trainers.training.shift_log import BatchNormShift
from vsfix.trainers.training.training_config import TrainingConfig
from vsfix.trainers.training.training_data import load_training_data
from vsfix.trainers.training.training_loop import TrainingOptions, train

AS_TRAINED = "as trained"
RE_ESTIMATED, PAIRED, OWN, REPAIRED = "re-estimated", "paired", "re-estimated, own images", "repaired, own images"


@dataclass(frozen=True)
class MeasuredRepair:
    """A repair whose accuracy a table shows.

    Attributes:
        config: how to repair.
        images: at most so many, unlabelled.
        own: take them from the images that the run was trained on; else from the training part of the data set.
    """

    config: RepairConfig
    images: int
    own: bool = False


REPAIRS: Mapping[str, MeasuredRepair] = {
    RE_ESTIMATED: MeasuredRepair(RepairConfig("exact", "*"), 1000),
    PAIRED: MeasuredRepair(RepairConfig("paired"), 32),
    OWN: MeasuredRepair(RepairConfig("exact"), 1000, own=True),
    REPAIRED: MeasuredRepair(RepairConfig(), 256, own=True),
}
"""By name. The paper's remedy has the noise off, with which `exact` estimates any layers but `all`."""
_BATCH_SIZE = 250
_LOGGED_EPOCHS = 20


@dataclass(frozen=True)
class Trial:
    """One run of a grid.

    Attributes:
        training: what is trained; it decides the identity of the run.
        repairs: names of `REPAIRS` that are measured on the trained network.
    """

    training: TrainingConfig
    repairs: tuple[str, ...] = ()

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
        repairs: top-1 after each of `REPAIRS` that was asked for, by its name; None where none was.
    """

    accuracy: float
    train_loss: float
    seconds: float
    images_per_second: float
    shift: tuple[BatchNormShift, ...]
    behind_noise: tuple[str, ...]
    repairs: Mapping[str, float] | None

    def accuracy_of(self, form: str) -> float | None:
        """Top-1 in [0, 1] as trained, or after the repair of that name; None where it was not measured."""
        return self.accuracy if form == AS_TRAINED else (self.repairs or {}).get(form)

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
        trained = train(trial.training, folder, TrainingOptions(log_shift=every, evaluate=trial.training.epochs))
        checkpoint = load_checkpoint(folder / "checkpoint.pt")
        last = checkpoint.metrics[-1]
        return TrialResult(
            accuracy=trained.test_accuracy,
            train_loss=last.train_loss,
            seconds=sum(metrics.seconds for metrics in checkpoint.metrics),
            images_per_second=last.images_per_second,
            shift=checkpoint.shift,
            behind_noise=_downstream_of_noise(checkpoint.build()),
            repairs=_repairs(checkpoint, folder, trial.repairs) if trial.repairs else None,
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


def _repairs(checkpoint: Checkpoint, folder: Path, names: Sequence[str]) -> dict[str, float]:
    """Top-1 of the exported network after each of these repairs."""
    training = checkpoint.training
    exported = folder / "model.onnx"
    export_checkpoint(checkpoint, exported, force=True)
    model = read_model(exported)
    own = _own_batches(model, training) if any(REPAIRS[name].own for name in names) else []
    labelled = labelled_samples(model, training.data, split="test", seed=0)
    found = {}
    for name in names:
        repair = REPAIRS[name]
        batches = first_samples(own, repair.images) if repair.own else _batches(model, training, repair.images)
        repaired = repair_model(model, batches, open_for_small_runs, repair.config).model
        with OnnxRuntimeRunner(repaired) as runner:
            found[name] = accuracy_of(name, runner, labelled, batch_size=_BATCH_SIZE).score.value / 100
    return found


def _batches(model: onnx.ModelProto, training: TrainingConfig, images: int) -> list[Batch]:
    """Images of the training part of the data set, whether the run has seen them or not."""
    return calibration_batches(
        model, training.data, samples=images, batch_size=_BATCH_SIZE, seed=training.seed, at_most=True
    )


def _own_batches(model: onnx.ModelProto, training: TrainingConfig) -> list[Batch]:
    """As many of the images that the run was trained on as any repair takes, in an order of their own."""
    data = load_training_data(training, torch.device("cpu"))
    most = max(repair.images for repair in REPAIRS.values() if repair.own)
    rows = torch.from_numpy(np.random.default_rng(training.seed).permutation(len(data.labels))[:most])
    (name,) = model_input_names(model)
    return [{name: images.numpy()} for images in data.images.batches(torch.split(rows, _BATCH_SIZE), 0)]
