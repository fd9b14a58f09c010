"""How good models are on labelled samples, one row each; top-1 of a runner over a set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.ir.runtime import Array, Runner
from vsfix.pipeline.data.batch_runs import run_batches
from vsfix.pipeline.data.samples import Samples

from .metric import LABELS, Metric
from .score_difference import Score, paired_p_value, score_of

TOP_1 = Metric("top1")


@dataclass(frozen=True)
class AccuracyRow:
    """One model on the labelled set.

    Attributes:
        model: what was measured, in words.
        images: the size of the calibration set of its repair, 0 for one that took none; None as trained.
        score: by the metric of the set.
        p_value: of the paired test against the model as trained, on the same samples; None for that model itself, and
            where the two were not compared.
    """

    model: str
    images: int | None
    score: Score
    p_value: float | None = None


def accuracy_of(
    model: str, runner: Runner, samples: Samples, *, batch_size: int, images: int | None = None
) -> AccuracyRow:
    """Measures the top-1 accuracy of the first output, logits of shape (N, classes).

    Raises:
        DataError: no labels, or an output that holds no logits.
    """
    return accuracy_row(model, right_answers(runner, samples, batch_size=batch_size), images=images)


def accuracy_row(
    model: str, scores: Array, *, metric: Metric = TOP_1, images: int | None = None, trained: Array | None = None
) -> AccuracyRow:
    """A model by its single scores.

    Args:
        model: what was measured, in words.
        scores: of each sample, shape (N,); bools where it is right or wrong.
        metric: that gave them.
        images: the size of the calibration set of its repair; None as trained.
        trained: the scores of the model as trained on the same samples; not given for that model itself.
    """
    found = scores.astype(np.float64)
    p_value = None if trained is None else paired_p_value(trained.astype(np.float64), found)
    return AccuracyRow(model, images, score_of(metric, found), p_value)


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
        name, logits = next(iter(outputs.items()))
        top1 = Metric("top1", name, LABELS)
        right[rows] = top1.scores({name: logits}, {LABELS: samples.labels[rows]}) > 0
    return right
