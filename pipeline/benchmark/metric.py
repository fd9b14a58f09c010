"""The numbers by which two runs are compared: which way is better, and what change of them counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vsfix.graph_passes.errors import InputError


@dataclass(frozen=True)
class Metric:
    """One number of a row.

    Attributes:
        name: the first word of its label.
        unit: of the change: points (of percent), dB, or %.
        higher_is_better: which way is better.
        noise: a change up to this is none; times vary from run to run.
    """

    name: str
    unit: str
    higher_is_better: bool
    noise: float = 0.0

    def change(self, before: float, after: float) -> float:
        """By how much a value changed, in the unit: relative for times and sizes, else the difference."""
        if after == before:  # two exact rows: infinity less infinity is no number
            return 0.0
        if self.unit != "%":
            return after - before
        return 100 * (after / before - 1) if before else math.inf

    def written(self, value: float) -> str:
        """A value as a person reads it."""
        if math.isfinite(value):
            return f"{value:.4g}"
        return "exact" if value > 0 else "not finite"

    def loss(self, change: float) -> float:
        """By how much a change is for the worse; negative where it is for the better."""
        return -change if self.higher_is_better else change


METRICS = {
    metric.name: metric
    for metric in (
        Metric("top1", "points", higher_is_better=True),
        Metric("retention", "points", higher_is_better=True),
        Metric("agreement", "points", higher_is_better=True),
        Metric("snr", "dB", higher_is_better=True, noise=0.5),
        Metric("p50", "%", higher_is_better=False, noise=5.0),
        Metric("p99", "%", higher_is_better=False, noise=10.0),
        Metric("ratio", "%", higher_is_better=False, noise=1.0),
        Metric("size", "%", higher_is_better=False),
    )
}


def metric_of(label: str) -> Metric:
    """What a number is one of, as `p50 batch 1`."""
    return METRICS[label.split()[0]]


@dataclass(frozen=True)
class FailRule:
    """The largest loss of a metric that passes, in its unit."""

    metric: str
    limit: float

    def __str__(self) -> str:
        return f"{self.metric}={self.limit:g}"


def parse_fail_rule(text: str) -> FailRule:
    """Reads `METRIC=LIMIT`, as `top1=0.5`.

    Raises:
        InputError: an unknown metric, or a limit that is no number from 0 on.
    """
    name, _, limit = text.partition("=")
    try:
        value = float(limit)
    except ValueError:
        value = math.nan
    if name not in METRICS or not 0 <= value < math.inf:
        units = ", ".join(f"{metric.name} ({metric.unit})" for metric in METRICS.values())
        raise InputError(f"--fail-on {text}: write METRIC=LIMIT, as top1=0.5, with a metric of {units}")
    return FailRule(name, value)
