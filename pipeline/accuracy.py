"""Top-1 accuracy of a model on labelled samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.inference import Runner

from .batch_runs import run_batches
from .calibration import Samples
from .proportion import wilson_interval


@dataclass(frozen=True)
class AccuracyRow:
    """The accuracy of one model on the labelled set.

    Attributes:
        model: what was measured, in words.
        images: the size of the calibration set of its repair, 0 for one that took none; None as trained.
        accuracy: top-1, in [0, 1].
        low: lower end of its Wilson interval at 95 %.
        high: upper end.
    """

    model: str
    images: int | None
    accuracy: float
    low: float
    high: float


def accuracy_of(
    model: str, runner: Runner, samples: Samples, *, batch_size: int, images: int | None = None
) -> AccuracyRow:
    """Measures the top-1 accuracy of the first output, logits of shape (N, classes).

    Raises:
        DataError: no labels, or an output that holds no logits.
    """
    if samples.labels is None:
        raise DataError(f"{samples.name}: has no labels; accuracy needs them")
    correct = 0
    for rows, outputs in run_batches(runner, samples, batch_size):
        logits = next(iter(outputs.values()))
        if logits.ndim != 2:
            raise DataError(f"the first output has the shape {logits.shape}; top-1 accuracy needs (N, classes)")
        if samples.labels.min() < 0 or samples.labels.max() >= logits.shape[1]:
            raise DataError(f"{samples.name}: its labels name other classes than the {logits.shape[1]} of the model")
        correct += int(np.sum(logits.argmax(axis=1) == samples.labels[rows]))
    low, high = wilson_interval(correct, len(samples))
    return AccuracyRow(model, images, correct / len(samples), low, high)
