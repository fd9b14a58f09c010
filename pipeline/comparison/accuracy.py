"""Top-1 accuracy of a model on labelled samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.ir.runtime import Array, Runner
from vsfix.pipeline.data.batch_runs import run_batches
from vsfix.pipeline.data.samples import Samples

from .proportion import mcnemar_p_value, wilson_interval
from .tensor_comparison import as_float64, finite_rows


@dataclass(frozen=True)
class AccuracyRow:
    """The accuracy of one model on the labelled set.

    Attributes:
        model: what was measured, in words.
        images: the size of the calibration set of its repair, 0 for one that took none; None as trained.
        accuracy: top-1, in [0, 1].
        low: lower end of its Wilson interval at 95 %.
        high: upper end.
        p_value: of McNemar's exact test against the model as trained, on the same samples; None for that model itself,
            and where the two were not compared.
    """

    model: str
    images: int | None
    accuracy: float
    low: float
    high: float
    p_value: float | None = None


def accuracy_of(
    model: str, runner: Runner, samples: Samples, *, batch_size: int, images: int | None = None
) -> AccuracyRow:
    """Measures the top-1 accuracy of the first output, logits of shape (N, classes).

    Raises:
        DataError: no labels, or an output that holds no logits.
    """
    return accuracy_row(model, right_answers(runner, samples, batch_size=batch_size), images=images)


def accuracy_row(model: str, right: Array, *, images: int | None = None, trained: Array | None = None) -> AccuracyRow:
    """The accuracy of a model from its single answers.

    Args:
        model: what was measured, in words.
        right: which samples it gets right, shape (N,).
        images: the size of the calibration set of its repair; None as trained.
        trained: which of the same samples the model as trained gets right; not given for that model itself.
    """
    count, total = int(right.sum()), len(right)
    p_value = None if trained is None else mcnemar_p_value(int(np.sum(trained & ~right)), int(np.sum(right & ~trained)))
    return AccuracyRow(model, images, count / total, *wilson_interval(count, total), p_value)


def right_answers(runner: Runner, samples: Samples, *, batch_size: int) -> Array:
    """Which samples a model gets right by its first output, logits of shape (N, classes).

    A sample whose logits are not finite is none of them.

    Returns:
        Shape (N,), of bools.

    Raises:
        DataError: no labels, or an output that holds no logits.
    """
    if samples.labels is None:
        raise DataError(f"{samples.name}: has no labels; accuracy needs them")
    if samples.labels.dtype.kind not in "iu":
        raise DataError(f"{samples.name}: its labels are numbers, not classes; accuracy needs whole numbers")
    right = np.zeros(len(samples), dtype=np.bool_)
    for rows, outputs in run_batches(runner, samples, batch_size):
        right[rows] = right_rows(next(iter(outputs.values())), samples.labels[rows], samples.name)
    return right


def right_rows(logits: Array, labels: Array, name: str) -> Array:
    """Which samples of one run are right, shape (N,), of bools; one whose logits are not finite is none of them.

    Args:
        logits: shape (N, classes).
        labels: shape (N,), whole numbers.
        name: of the data, for messages.

    Raises:
        DataError: no logits, or labels of other classes.
    """
    if logits.ndim != 2:
        raise DataError(f"the first output has the shape {logits.shape}; top-1 accuracy needs (N, classes)")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise DataError(f"{name}: its labels name other classes than the {logits.shape[1]} of the model")
    decided = finite_rows(as_float64(logits, "the output"))
    return np.asarray(decided & (logits.argmax(axis=1) == labels))
