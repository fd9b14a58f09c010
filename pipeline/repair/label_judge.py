"""The judgement of labelled data: one score a sample, and a paired test between two models.

whole numbers      classes: 1 where the model decides for the label, else 0; McNemar's exact test
numbers            targets of the output's shape: minus the squared error; a permutation test of the differences' signs,
                   or with many labels the normal distribution of their mean
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc

import numpy as np
import onnx

from vsfix.graph_passes.errors import CheckFailedError, DataError
from vsfix.graph_passes.ir.runtime import Array, Float64Array, OpenModel, side_by_side
from vsfix.graph_passes.measurement.measurement import run_size
from vsfix.graph_passes.noise_average.severity import mean_interval, sign_flip_p_value
from vsfix.graph_passes.statistics.batches import take_rows
from vsfix.graph_passes.statistics.jackknife import MIN_GROUPS
from vsfix.pipeline.comparison.accuracy import right_rows
from vsfix.pipeline.comparison.proportion import SIGNIFICANT, mcnemar_p_value, paired_difference_interval
from vsfix.pipeline.data.calibration import fixed_batch_size
from vsfix.pipeline.data.samples import Samples

TOP_1, SQUARED_ERROR = "top-1", "squared error"
FOLDED = 1e-5  # relative: a score that moves by less has the same decisions
_ROUNDING = 1e-9  # of a loss, which one sample makes up exactly
_FEWEST = 8  # labels, below which they tell nothing
_NORMAL = 200  # labels, from which on the mean of their differences is normal


@dataclass(frozen=True)
class LabelScores:
    """The judgement of labelled data on the file as given and on the repaired one. Errors are negative scores.

    Attributes:
        metric: `top-1`, a share, or `squared error`, a mean.
        before: of the file as given.
        after: of what is written.
        p_value: of the paired test that both are equally good.
        interval: of `after` less `before`, 95 %; infinite where nothing is known.
        samples: how many were scored.
        max_loss: the largest loss that is accepted, in the unit of `loss`; None accepts what may be chance.
    """

    metric: str
    before: float
    after: float
    p_value: float
    interval: tuple[float, float] = (-np.inf, np.inf)
    samples: int = 0
    max_loss: float | None = None

    @property
    def loss(self) -> float:
        """By how much it is worse: in percentage points of top-1, or as a mean squared error."""
        return (self.before - self.after) * (100 if self.metric == TOP_1 else 1)

    @property
    def is_worse(self) -> bool:
        """Whether the repaired file is lower by more than chance, and by more than rounding."""
        return not self.after >= self.before - self._rounding and self.p_value < SIGNIFICANT

    @property
    def is_better(self) -> bool:
        """Whether the repaired file is higher by more than chance, and by more than rounding."""
        return self.after > self.before + self._rounding and self.p_value < SIGNIFICANT

    @property
    def _rounding(self) -> float:
        """The change of a score by a fold, which rounds at other points."""
        return FOLDED * abs(self.before)

    def text(self, score: float) -> str:
        """One of the scores for a person."""
        return f"top-1 {100 * score:.2f} %" if self.metric == TOP_1 else f"a mean squared error of {-score:.4g}"

    def arrow(self) -> str:
        """Both scores in the verdict."""
        if self.metric == TOP_1:
            return f"top-1 {100 * self.before:.1f} -> {100 * self.after:.1f} %"
        return f"mean squared error {-self.before:.4g} -> {-self.after:.4g}"

    def difference(self) -> str:
        """Repaired less as given with its interval and the test, in the unit of the metric."""
        sign, unit = (100.0, " percentage points") if self.metric == TOP_1 else (-1.0, "")
        moved = sign * (self.after - self.before)
        low, high = sorted(sign * end for end in self.interval)
        number = "+.2f" if self.metric == TOP_1 else "+.4g"
        ends = f" (95 % interval {low:{number}} to {high:{number}})" if np.isfinite(low) else ""
        return f"{moved:{number}}{unit}{ends}, paired test p = {self.p_value:.2g}, {self.samples} samples"

    def require_no_loss(self, data: str, advice: str) -> None:
        """Refuses a loss beyond `max_loss`; where none is given, one that is more than chance.

        Raises:
            CheckFailedError: with both scores, the interval and the test.
        """
        if self.max_loss is None:
            if not self.is_worse:
                return
            beyond = ""
        elif self.loss <= self.max_loss * (1 + _ROUNDING) + _ROUNDING:
            return
        else:
            beyond = f" is beyond --max-loss {self.max_loss:g}"
        raise CheckFailedError(
            f"refused: on {data} the repaired model has {self.text(self.after)}, the original "
            f"{self.text(self.before)}: {self.difference()}{beyond}; no model is written; {advice}"
        )


@dataclass(frozen=True, eq=False)
class LabelJudge:
    """Labelled samples, and the runtime that runs a model over them.

    Attributes:
        samples: with labels.
        open_model: the runtime.
        batch_size: samples per run, at most; large ones make small runs, so that a set of any size is streamed.
    """

    samples: Samples
    open_model: OpenModel
    batch_size: int

    @property
    def metric(self) -> str:
        """The metric of a score: `top-1` or `squared error`."""
        labels = self.samples.labels
        return TOP_1 if labels is not None and labels.dtype.kind in "iu" else SQUARED_ERROR

    def scores(self, model: onnx.ModelProto) -> Float64Array:
        """One score a sample, the higher the better, shape (N,); minus infinity where an output is not finite.

        Raises:
            DataError: no labels, or labels that do not fit the first output.
        """
        labels = self.samples.labels
        if labels is None:
            raise DataError(f"{self.samples.name}: has no labels")
        if self.metric == SQUARED_ERROR and not np.isfinite(labels).all():
            raise DataError(f"{self.samples.name}: labels that are not finite")
        if labels.ndim == 2 and labels.shape[1] > 1 and _is_one_hot(labels):
            raise DataError(
                f"{self.samples.name}: the labels are one-hot; give the number of each class, argmax(axis=1)"
            )
        size = fixed_batch_size(model) or min(self.batch_size, run_size([self.samples.inputs]))
        with self.open_model(model) as runner:

            def score(start: int) -> Float64Array:
                rows = slice(start, start + size)
                outputs = runner.run(dict(take_rows(self.samples.inputs, rows)))
                return self._scores(next(iter(outputs.values())), labels[rows])

            parts = list(side_by_side(score, range(0, len(self.samples), size), runner.concurrency))
        scores = np.concatenate(parts)
        return np.where(np.isfinite(scores), scores, -np.inf)

    def _scores(self, output: Array, labels: Array) -> Float64Array:
        """The scores of one run."""
        if self.metric == TOP_1:
            return right_rows(output, labels, self.samples.name).astype(np.float64)
        found, targets = output.astype(np.float64), labels.astype(np.float64)
        if found.size != targets.size:
            raise DataError(
                f"{self.samples.name}: labels of shape {labels.shape[1:]} a sample do not fit the first output, "
                f"{found.shape[1:]}"
            )
        errors = (found.reshape(targets.shape) - targets) ** 2
        return np.asarray(-errors.reshape(len(errors), -1).mean(axis=1))

    def p_value(self, reference: Float64Array, found: Float64Array) -> float:
        """Of the hypothesis that two models are equally good, from their scores on the same samples."""
        if len(found) < _FEWEST:
            return 1.0
        if self.metric == TOP_1:
            worse, better = int(np.sum(reference > found)), int(np.sum(found > reference))
            return mcnemar_p_value(worse, better)
        if not (np.isfinite(reference).all() and np.isfinite(found).all()):
            return 0.0 if np.isfinite(reference).all() != np.isfinite(found).all() else 1.0
        moved = found - reference
        if len(moved) < _NORMAL:
            return min(1.0, 2 * min(sign_flip_p_value(moved), sign_flip_p_value(-moved)))
        deviation = float(moved.std(ddof=1))
        if not deviation > 0:
            return 0.0 if moved.any() else 1.0
        z = abs(float(moved.mean())) / (deviation / np.sqrt(len(moved)))
        return float(2 * _upper_tail(z))

    def interval(self, reference: Float64Array, found: Float64Array) -> tuple[float, float]:
        """The 95 % interval of the mean score of the second of two models less that of the first."""
        if self.metric == TOP_1:
            right, still_right = reference > 0, found > 0
            both, total = int(np.sum(right & still_right)), len(found)
            return paired_difference_interval(both, int(right.sum()) - both, int(still_right.sum()) - both, total)
        if len(found) < MIN_GROUPS or not (np.isfinite(reference).all() and np.isfinite(found).all()):
            return -np.inf, np.inf
        return mean_interval(found - reference)

    def compare(self, reference: Float64Array, found: Float64Array, max_loss: float | None = None) -> LabelScores:
        """The judgement of the labels on a model beside a reference.

        Args:
            reference: its scores, shape (N,).
            found: those of the model on the same samples.
            max_loss: see `LabelScores`.
        """
        return LabelScores(
            self.metric,
            float(reference.mean()),
            float(found.mean()),
            self.p_value(reference, found),
            self.interval(reference, found),
            len(found),
            max_loss,
        )

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


def _is_one_hot(labels: Array) -> bool:
    """Whether each row holds a single 1 beside zeros."""
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())
