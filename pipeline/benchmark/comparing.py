"""The numbers that became better or worse between two runs of `vsfix benchmark`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.progress import stage
from vsfix.pipeline.comparison.proportion import SIGNIFICANT, mcnemar_p_value
from vsfix.pipeline.comparison.score_difference import FOLDED
from vsfix.pipeline.comparison.tolerance import MAX_CV

from .benchmark_file import OWN_METRIC, BenchmarkFile, Key, label_of, read_benchmark

Direction = Literal["better", "worse", "same"]
_TIMES = ("p50", "p99")
_RANKS = {"PASS": 0, "WARN": 1, "SKIP": 2, "FAIL": 3}


@dataclass(frozen=True)
class Change:
    """One number of one row in two runs.

    Attributes:
        row: model, backend and precision.
        metric: its label, as `p50 batch 1`.
        before: in the first run.
        after: in the second.
        change: in the unit; of times and sizes in percent.
        unit: percentage points, dB or %; empty for a plain number.
        direction: better, worse, or the same within the noise of the metric.
    """

    row: Key
    metric: str
    before: float
    after: float
    change: float
    unit: str
    direction: Direction

    @property
    def moved(self) -> str:
        """The change with its unit."""
        return f"{self.change:+.3g} {self.unit}".rstrip()


@dataclass(frozen=True)
class RunComparison:
    """Two runs.

    Attributes:
        changes: of every number that both have.
        gone: what only the first run has: rows, or numbers of a row.
        added: what only the second has.
        warnings: what makes the two hard to compare.
        failures: one sentence for each rule that was broken.
    """

    changes: tuple[Change, ...]
    gone: tuple[str, ...]
    added: tuple[str, ...]
    warnings: tuple[str, ...]
    failures: tuple[str, ...]


@stage("compare")
def compare_files(before: Path, after: Path, rules: Sequence[FailRule]) -> RunComparison:
    """Compares two files of `vsfix benchmark --json`.

    Args:
        before: the first run.
        after: the second.
        rules: what must not happen. A row or number that a rule watches and that is gone breaks it too, and so does a
            rule that nothing in the two runs can be held against.

    Raises:
        InputError: see `read_benchmark`; two files that judge by different metrics, or different outputs.
    """
    return compare_runs(read_benchmark(before), read_benchmark(after), rules)


def compare_runs(before: BenchmarkFile, after: BenchmarkFile, rules: Sequence[FailRule]) -> RunComparison:
    """Compares two runs; see `compare_files`."""
    _require_one_metric(before, after)
    changes: list[Change] = []
    gone: list[tuple[Key, str]] = []
    added: list[tuple[Key, str]] = []
    for key in dict.fromkeys([*before.rows, *after.rows]):
        if key not in after.rows:
            gone.append((key, ""))
        elif key not in before.rows:
            added.append((key, ""))
        else:
            old, new = ({k: v for k, v in run.rows[key].items() if v is not None} for run in (before, after))
            both = [label for label in old if label in new]
            changes += [_change(key, label, (old[label], new[label]), (before, after)) for label in both]
            gone += [(key, label) for label in old if label not in new]
            added += [(key, label) for label in new if label not in old]
    return RunComparison(
        changes=tuple(changes),
        gone=tuple(_name(*number) for number in gone),
        added=tuple(_name(*number) for number in added),
        warnings=_warnings(before, after) + _doubts(before, after, changes),
        failures=tuple(failure for rule in rules for failure in _failures(rule, changes, gone)),
    )


def _require_one_metric(before: BenchmarkFile, after: BenchmarkFile) -> None:
    """Refuses two runs whose numbers mean different things; an output without a name may be any."""
    one, two = before.metric, after.metric
    if one is not None and two is not None and one[0] == two[0] and ("" in (one[1], two[1]) or one[1] == two[1]):
        return
    if one is not two:
        judged = " and ".join(f"{run.path} holds {_judged(run)}" for run in (before, after))
        raise InputError(f"{judged}; run both with the same labels, --metric and --metric-output")


def _judged(run: BenchmarkFile) -> str:
    """The metric of a run and what it judges, in words."""
    if run.metric is None:
        return "no metric, since its data had no labels,"
    key, output = run.metric
    return key + (f" of output '{output}'" if output else "")


def _change(key: Key, label: str, values: tuple[float, float], runs: tuple[BenchmarkFile, BenchmarkFile]) -> Change:
    """One number; two ratios whose intervals overlap are the same."""
    quantity = quantity_of(label)
    change = quantity.change(*values)
    loss = quantity.loss(change)
    one, two = (run.intervals[key].get(label) for run in runs)
    overlap = one is not None and two is not None and one[0] <= two[1] and two[0] <= one[1]
    direction: Direction = "same" if abs(loss) <= quantity.noise or overlap else "worse" if loss > 0 else "better"
    return Change(key, label, *values, change, quantity.unit, direction)


def _warnings(before: BenchmarkFile, after: BenchmarkFile) -> tuple[str, ...]:
    """The reasons why two runs are hard to compare, and rows whose status became worse."""
    warnings = []
    if (before.data, before.samples) != (after.data, after.samples):
        warnings.append(f"other data: {before.samples} samples of {before.data}, then {after.samples} of {after.data}")
    elif before.digest != after.digest:
        warnings.append(f"other samples of {before.data}: another choice, preprocessing or version; compare with care")
    for label in before.hardware:
        if before.hardware[label] != after.hardware.get(label, before.hardware[label]):
            warnings.append(
                f"another {label}: {before.hardware[label]}, then {after.hardware[label]}; times can't be compared"
            )
    for key, status in after.statuses.items():
        old = before.statuses.get(key, status)
        if _RANKS.get(status, 3) > _RANKS.get(old, 3):
            warnings.append(f"{_name(key)}: {old}, now {status}")
    return tuple(warnings)


def _doubts(before: BenchmarkFile, after: BenchmarkFile, changes: Sequence[Change]) -> tuple[str, ...]:
    """Which changes may be none: of times on a machine that was not quiet, of a few samples."""
    warnings = []
    cv = max(before.highest_cv, after.highest_cv)
    if cv > MAX_CV and any(quantity_of(c.metric).name in _TIMES and c.direction != "same" for c in changes):
        warnings.append(
            f"times differ, but a machine was not quiet: its latencies vary by up to {cv:.0%}; only ratios are of rows "
            "that ran in turn"
        )
    if before.digest == after.digest:
        moved = [abs(after.right[key] - before.right[key]) for key in before.right if key in after.right]
        few = [count for count in moved if count and mcnemar_p_value(count, 0) >= SIGNIFICANT]
        if few and before.metric is not None:
            warnings.append(
                f"{label_of(before.metric[0])} of {len(few)} rows moved by no more than {max(few)} of {after.samples} "
                "samples: whichever they are, that is no more than chance"
            )
    return tuple(warnings)


def _failures(rule: FailRule, changes: Sequence[Change], gone: Sequence[tuple[Key, str]]) -> list[str]:
    """How a rule is broken: by a loss, by a number that is gone, or since there is none to hold it against."""
    watched = [change for change in changes if quantity_of(change.metric).name == rule.metric]
    lost = [(key, label) for key, label in gone if not label or quantity_of(label).name == rule.metric]
    if not watched and not lost:
        return [f"no row of both runs has {rule.metric}, so that {rule} can't be held"]
    # The rounding of a difference of percents is no loss.
    broken = [change for change in watched if quantity_of(change.metric).loss(change.change) > rule.limit + 1e-9]
    if rule.metric == "ratio":  # intervals that overlap are no loss
        broken = [change for change in broken if change.direction != "same"]
    return [
        *(_loss(change, rule) for change in broken),
        *(f"{_name(*number)}: is gone, so that {rule} can't be held" for number in lost),
    ]


def _loss(change: Change, rule: FailRule) -> str:
    """A loss past its limit in words."""
    before, after = (quantity_of(change.metric).written(value) for value in (change.before, change.after))
    return (
        f"{_name(change.row, change.metric)} {before} -> {after} ({change.moved}), allowed is a loss of {rule.limit:g}"
    )


def _name(key: Key, label: str = "") -> str:
    """A row in words, or one of its numbers."""
    return ", ".join(key) + (f": {label}" if label else "")


@dataclass(frozen=True)
class Quantity:
    """One number of a row.

    Attributes:
        name: the first word of its label.
        unit: of the change: percentage points, dB, %, or empty for a plain number.
        higher_is_better: which way is better.
        noise: a change up to this is none; times vary from run to run.
    """

    name: str
    unit: str
    higher_is_better: bool
    noise: float = 0.0

    def change(self, before: float, after: float) -> float:
        """By how much a value changed, in the unit: relative for errors, times and sizes, else the difference."""
        if after == before:  # two exact rows: infinity less infinity is no number
            return 0.0
        if self.unit != "%":
            return after - before
        return 100 * (after / before - 1) if before else math.inf

    def written(self, value: float) -> str:
        """A value as a person reads it."""
        if math.isfinite(value):
            return f"{value:.4g}"
        return ("exact" if value > 0 else "not finite") if self.higher_is_better else "not finite"

    def loss(self, change: float) -> float:
        """By how much a change is for the worse; negative where it is for the better."""
        return -change if self.higher_is_better else change


QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity("top1", "percentage points", higher_is_better=True),
        Quantity("top5", "percentage points", higher_is_better=True),
        Quantity("mse", "%", higher_is_better=False, noise=100 * FOLDED),
        Quantity("mae", "%", higher_is_better=False, noise=100 * FOLDED),
        Quantity("bce", "%", higher_is_better=False, noise=100 * FOLDED),
        Quantity("r2", "", higher_is_better=True, noise=FOLDED),
        Quantity("cosine", "", higher_is_better=True, noise=FOLDED),
        Quantity("iou", "", higher_is_better=True, noise=FOLDED),
        Quantity(OWN_METRIC, "", higher_is_better=True, noise=FOLDED),
        Quantity("retention", "percentage points", higher_is_better=True),
        Quantity("agreement", "percentage points", higher_is_better=True),
        Quantity("snr", "dB", higher_is_better=True, noise=0.5),
        Quantity("p50", "%", higher_is_better=False, noise=5.0),
        Quantity("p99", "%", higher_is_better=False, noise=10.0),
        Quantity("ratio", "%", higher_is_better=False, noise=1.0),
        Quantity("size", "%", higher_is_better=False),
    )
}


def quantity_of(label: str) -> Quantity:
    """The quantity that a number is one of, by its label, as `p50 batch 1`."""
    return QUANTITIES[label.split()[0]]


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
    if name not in QUANTITIES or not 0 <= value < math.inf:
        units = ", ".join(f"{metric.name} ({metric.unit or 'absolute'})" for metric in QUANTITIES.values())
        raise InputError(f"--fail-on {text}: write METRIC=LIMIT, as top1=0.5, with a metric of {units}")
    return FailRule(name, value)
