"""Models by their scores on samples: one with its interval, and two on the same samples by their difference.

decisions    scores of 0 and 1 alone: Wilson's interval; of a difference McNemar's exact test, Newcombe's interval
any other    Student's interval of the mean; of a difference a permutation test of its signs, with many samples the
             normal distribution of their mean
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc

import numpy as np

from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.noise_average.severity import mean_interval, sign_flip_p_value
from vsfix.graph_passes.statistics.jackknife import MIN_GROUPS

from .metric import Metric
from .proportion import SIGNIFICANT, mcnemar_p_value, paired_difference_interval, wilson_interval

FOLDED = 1e-5  # relative: a score that moves by less has the same decisions
FEWEST = 8  # samples, below which they tell nothing
NOT_FINITE = "not finite"
_EXACT = 1e-9  # of a loss, which is a difference of two means
_LARGE = 0.05  # of the metric: a loss that nobody takes for none
_NORMAL = 200  # samples, from which on the mean of their differences is normal


@dataclass(frozen=True)
class Score:
    """A model on labelled samples, by one metric as a person reads it: errors positive, shares in percent.

    Attributes:
        metric: in words, as `top-1`.
        value: the metric.
        low: lower end of its 95 % interval; minus infinity where nothing is known.
        high: upper end.
        samples: how many were scored.
        count: right answers, where each sample is one decision; else None.
        unit: `%`, or empty.
        is_loss: whether the lower is the better.
    """

    metric: str
    value: float
    low: float
    high: float
    samples: int
    count: int | None = None
    unit: str = ""
    is_loss: bool = False

    def number(self, value: float, digits: int = 2) -> str:
        """A value of this metric with its unit."""
        if not np.isfinite(value):
            return NOT_FINITE
        return f"{value:.{digits}f} %" if self.unit else f"{value:.4g}"

    def text(self, digits: int = 2) -> str:
        """The value with the name of the metric, as `top-1 92.40 %`."""
        return f"{self.metric} {self.number(self.value, digits)}"

    def is_above(self, other: Score) -> bool:
        """Whether it is the better of two."""
        return self.value < other.value if self.is_loss else self.value > other.value


def score_of(metric: Metric, scores: Float64Array) -> Score:
    """A model by its scores.

    Args:
        metric: that gave the scores.
        scores: of the samples, shape (N,).
    """
    mean, count = float(scores.mean()), None
    low, high = -np.inf, np.inf
    if _is_decided(metric, scores):
        count = int(scores.sum())
        low, high = wilson_interval(count, len(scores))
    elif len(scores) >= MIN_GROUPS and np.isfinite(scores).all():
        low, high = mean_interval(scores)
    ends = sorted((metric.shown(low), metric.shown(high)))
    unit = "%" if metric.is_share else ""
    return Score(metric.name, metric.shown(mean), ends[0], ends[1], len(scores), count, unit, metric.is_loss)


@dataclass(frozen=True)
class ScoreDifference:
    """A model beside a reference on labelled samples.

    Attributes:
        metric: in words, as `top-1`.
        output: the output that is judged; None where a function has them all.
        before: the metric of the reference as a person reads it: errors positive, shares in percent.
        after: that of the model.
        gain: by how much the model is better, negative where it is worse, in the unit of the metric.
        interval: of `gain`, 95 %; infinite where nothing is known.
        p_value: of the paired test that both are equally good.
        samples: how many were scored.
        unit: `percentage points`, or empty.
        regressions: how many samples only the reference decides right; None where a sample is no single decision.
        fixes: how many only the model decides right.
        is_loss: whether `before` and `after` are errors.
    """

    metric: str
    output: str | None
    before: float
    after: float
    gain: float
    interval: tuple[float, float]
    p_value: float
    samples: int
    unit: str = ""
    regressions: int | None = None
    fixes: int | None = None
    is_loss: bool = False

    @property
    def retention(self) -> float | None:
        """The share of the metric that is kept, of errors the inverse of their ratio; None where that says nothing."""
        before, after = self.before, self.after
        if self.is_loss:
            before, after = after, before
        if self.unit:
            return after / before if before > 0 else None
        if self.is_loss and before == after == 0:
            return 1.0
        return after / before if before > 0 and after > 0 else None

    @property
    def is_told(self) -> bool:
        """Whether there are samples enough to tell which one is better: of fewer no loss is more than chance."""
        return self.samples >= FEWEST

    @property
    def is_doubtful(self) -> bool:
        """Whether the model lost a twentieth of the metric or more, on too few samples to tell that from chance."""
        return self.gain <= -_LARGE * abs(self.before) < 0 and not self.is_worse

    @property
    def is_worse(self) -> bool:
        """Whether the model is worse by more than chance, and by more than rounding."""
        return not self.gain >= -self._rounding and self.p_value < SIGNIFICANT

    def loses_more_than(self, limit: float) -> bool:
        """Whether the model lost more than a limit in the unit of `gain`; one sample may make it up exactly."""
        return -self.gain > limit * (1 + _EXACT) + _EXACT

    @property
    def is_better(self) -> bool:
        """Whether the model is better by more than chance, and by more than rounding."""
        return self.gain > self._rounding and self.p_value < SIGNIFICANT

    @property
    def _rounding(self) -> float:
        """The change of a score by a fold, which rounds at other points."""
        return FOLDED * abs(self.before) if np.isfinite(self.before) else 0.0

    def value(self, shown: float) -> str:
        """One of the two numbers with its unit."""
        if not np.isfinite(shown):
            return NOT_FINITE
        return f"{shown:.2f} %" if self.unit else f"{shown:.4g}"

    @property
    def arrow(self) -> str:
        """Both numbers in one sentence, as `top-1 36.4 -> 76.3 %`."""
        if self.unit:
            return f"{self.metric} {self.before:.1f} -> {self.after:.1f} %"
        return f"{self.metric} {self.value(self.before)} -> {self.value(self.after)}"

    @property
    def change(self) -> str:
        """By how much the metric moved, as `+39.90 percentage points` or `0.0892 lower`."""
        if self.unit:
            return f"{self.gain:+.2f} {self.unit}"
        moved = self.after - self.before
        return f"{abs(moved):.3g} {'lower' if moved < 0 else 'higher'}" if self.is_loss else f"{moved:+.3g}"

    @property
    def _worth(self) -> str:
        """The gain of a plain number in words."""
        if not self.gain:
            return "no difference"
        return f"{abs(self.gain):.4g} {'better' if self.gain > 0 else 'worse'}"

    @property
    def details(self) -> str:
        """The gain with its interval and the test."""
        number = "+.2f" if self.unit else "+.4g"
        gain = f"{self.gain:{number}} {self.unit}" if self.unit else self._worth
        low, high = self.interval
        ends = f" (95 % interval {low:{number}} to {high:{number}})" if np.isfinite(low) else ""
        return f"{gain}{ends}, paired test p = {self.p_value:.2g}, {self.samples} samples"


def compare_scores(metric: Metric, reference: Float64Array, found: Float64Array) -> ScoreDifference:
    """A model beside a reference.

    Args:
        metric: that gave the scores.
        reference: the scores of the reference, shape (N,).
        found: those of the model on the same samples.
    """
    scale = 100.0 if metric.is_share else 1.0
    before, after = float(reference.mean()), float(found.mean())
    low, high = gain_interval(reference, found)
    decided = _is_decided(metric, reference, found)
    return ScoreDifference(
        metric.name,
        metric.output,
        metric.shown(before),
        metric.shown(after),
        scale * mean_gain(reference, found),
        (scale * low, scale * high),
        paired_p_value(reference, found),
        len(found),
        metric.unit,
        int(np.sum(reference > found)) if decided else None,
        int(np.sum(found > reference)) if decided else None,
        metric.is_loss,
    )


def paired_p_value(reference: Float64Array, found: Float64Array) -> float:
    """Of the hypothesis that two models are equally good, two-sided.

    Args:
        reference: the scores of one model, shape (N,).
        found: those of the other on the same samples.
    """
    if len(found) < FEWEST:
        return 1.0
    if _are_decisions(reference, found):
        return mcnemar_p_value(int(np.sum(reference > found)), int(np.sum(found > reference)))
    finite = np.isfinite(reference) & np.isfinite(found)
    if not finite.all():
        return 0.0 if _fewer_broken(reference, found) else paired_p_value(reference[finite], found[finite])
    moved = found - reference
    if len(moved) < _NORMAL:
        return min(1.0, 2 * min(sign_flip_p_value(moved), sign_flip_p_value(-moved)))
    deviation = float(moved.std(ddof=1))
    if not deviation > 0:
        return 0.0 if moved.any() else 1.0
    z = abs(float(moved.mean())) / (deviation / np.sqrt(len(moved)))
    return float(erfc(z / 2**0.5))


def mean_gain(reference: Float64Array, found: Float64Array) -> float:
    """The mean score of the second of two models less that of the first.

    Where scores are not finite, infinite for the one that has fewer of them; of equally many, that of the samples on
    which both are finite.
    """
    if fewer := _fewer_broken(reference, found):
        return np.inf if fewer > 0 else -np.inf
    finite = np.isfinite(reference) & np.isfinite(found)
    return float(found[finite].mean()) - float(reference[finite].mean()) if finite.any() else 0.0


def _fewer_broken(reference: Float64Array, found: Float64Array) -> int:
    """How many fewer scores of the second of two models are not finite."""
    return int(np.isfinite(found).sum()) - int(np.isfinite(reference).sum())


def gain_interval(reference: Float64Array, found: Float64Array) -> tuple[float, float]:
    """The 95 % interval of the mean score of the second of two models less that of the first; infinite if unknown."""
    if _are_decisions(reference, found):
        right, still_right = reference > 0, found > 0
        both, total = int(np.sum(right & still_right)), len(found)
        return paired_difference_interval(both, int(right.sum()) - both, int(still_right.sum()) - both, total)
    if len(found) < MIN_GROUPS or not (np.isfinite(reference).all() and np.isfinite(found).all()):
        return -np.inf, np.inf
    return mean_interval(found - reference)


def is_worse(reference: Float64Array, found: Float64Array) -> bool:
    """Whether the second of two models is worse, by more than chance."""
    return mean_gain(reference, found) < 0 and paired_p_value(reference, found) < SIGNIFICANT


def is_better(reference: Float64Array, found: Float64Array, tried: int = 1) -> bool:
    """Whether the second of two models is better, by more than chance.

    Args:
        reference: the scores of one model, shape (N,).
        found: those of the other on the same samples.
        tried: the number of models that it is the best of, each of which may be so by chance (Bonferroni).
    """
    return bool(found.mean() > reference.mean()) and paired_p_value(reference, found) < SIGNIFICANT / max(tried, 1)


def _is_decided(metric: Metric, *scores: Float64Array) -> bool:
    """Whether the scores count right answers: those of an error, or of R2, are 0 and 1 by chance alone."""
    return (metric.is_share or metric.needs_all) and _are_decisions(*scores)


def _are_decisions(*scores: Float64Array) -> bool:
    """Whether every score is that of a single decision."""
    return all(bool(((found == 0) | (found == 1)).all()) for found in scores)
