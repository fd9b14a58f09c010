"""What labelled data says of a model: one score a sample, and a paired test between two models.

whole numbers      classes: 1 where the model decides for the label, else 0; McNemar's exact test
numbers            targets of the output's shape: minus the squared error; a permutation test of the differences' signs,
                   or with many labels the normal distribution of their mean
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc

import numpy as np
import onnx

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.estimators.severity import sign_flip_p_value
from vsfix.graph_passes.inference import Float64Array, OpenModel

from .accuracy import right_answers
from .batch_runs import run_batches
from .calibration import Samples
from .proportion import mcnemar_p_value

SIGNIFICANT = 0.05
_FEWEST = 8  # labels, below which they tell nothing
_NORMAL = 200  # labels, from which on the mean of their differences is normal


@dataclass(frozen=True, eq=False)
class LabelJudge:
    """Labelled samples, and the runtime that runs a model over them.

    Attributes:
        samples: with labels.
        open_model: the runtime.
        batch_size: samples per run.
    """

    samples: Samples
    open_model: OpenModel
    batch_size: int

    @property
    def metric(self) -> str:
        """What a score is: `top-1` or `squared error`."""
        labels = self.samples.labels
        return "top-1" if labels is not None and labels.dtype.kind in "iu" else "squared error"

    def scores(self, model: onnx.ModelProto) -> Float64Array:
        """One score a sample, the higher the better, shape (N,).

        Raises:
            DataError: no labels, or labels that do not fit the first output.
        """
        labels = self.samples.labels
        if labels is None:
            raise DataError(f"{self.samples.name}: has no labels")
        with self.open_model(model) as runner:
            if self.metric == "top-1":
                return right_answers(runner, self.samples, batch_size=self.batch_size).astype(np.float64)
            if not np.isfinite(labels).all():
                raise DataError(f"{self.samples.name}: labels that are not finite")
            scores = np.empty(len(self.samples))
            for rows, outputs in run_batches(runner, self.samples, self.batch_size):
                found = next(iter(outputs.values())).astype(np.float64)
                targets = labels[rows].astype(np.float64)
                if found.size != targets.size:
                    raise DataError(
                        f"{self.samples.name}: labels of shape {labels.shape[1:]} a sample do not fit the first "
                        f"output, {found.shape[1:]}"
                    )
                errors = (found.reshape(targets.shape) - targets) ** 2
                scores[rows] = -errors.reshape(len(errors), -1).mean(axis=1)
        return scores

    def p_value(self, reference: Float64Array, found: Float64Array) -> float:
        """Of the hypothesis that two models are equally good, from their scores on the same samples."""
        if len(found) < _FEWEST:
            return 1.0
        if self.metric == "top-1":
            worse, better = int(np.sum(reference > found)), int(np.sum(found > reference))
            return mcnemar_p_value(worse, better)
        moved = found - reference
        if len(moved) < _NORMAL:
            return min(1.0, 2 * min(sign_flip_p_value(moved), sign_flip_p_value(-moved)))
        deviation = float(moved.std(ddof=1))
        if not deviation > 0:
            return 1.0 if not moved.any() or not np.isfinite(deviation) else 0.0
        z = abs(float(moved.mean())) / (deviation / np.sqrt(len(moved)))
        return float(2 * _upper_tail(z))

    def is_worse(self, reference: Float64Array, found: Float64Array) -> bool:
        """Whether the second of two models is worse, by more than chance."""
        return bool(found.mean() < reference.mean()) and self.p_value(reference, found) < SIGNIFICANT

    def is_better(self, reference: Float64Array, found: Float64Array) -> bool:
        """Whether the second of two models is better, by more than chance."""
        return self.is_worse(found, reference)


def cross_fitted(scores: dict[str, Float64Array]) -> Float64Array:
    """The scores that a choice by labels reaches on samples that had no part in it, shape (N,).

    The even samples choose for the odd ones, and the other way round.
    """
    names = list(scores)
    table = np.stack([scores[name] for name in names])  # (candidates, N)
    reached = np.empty(table.shape[1])
    even = np.arange(table.shape[1]) % 2 == 0
    for choosing in (even, ~even):
        best = int(table[:, choosing].mean(axis=1).argmax()) if choosing.any() else 0
        reached[~choosing] = table[best, ~choosing]
    return reached


def _upper_tail(z: float) -> float:
    """The probability of a normal variable above z."""
    return 0.5 * erfc(z / 2**0.5)
