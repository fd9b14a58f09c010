"""What became better or worse between two runs of `vsfix benchmark`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .benchmark_file import BenchmarkFile, Key, read_benchmark
from .metric import METRICS, FailRule, Metric

Direction = Literal["better", "worse", "same"]
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
        unit: points, dB or %.
        direction: better, worse, or the same within the noise of the metric.
    """

    row: Key
    metric: str
    before: float
    after: float
    change: float
    unit: str
    direction: Direction


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


def compare_files(before: Path, after: Path, rules: Sequence[FailRule]) -> RunComparison:
    """Compares two files of `vsfix benchmark --json`.

    Args:
        before: the first run.
        after: the second.
        rules: what must not happen. A row or number that a rule watches and that is gone breaks it too.

    Raises:
        InputError: see `read_benchmark`.
    """
    return compare_runs(read_benchmark(before), read_benchmark(after), rules)


def compare_runs(before: BenchmarkFile, after: BenchmarkFile, rules: Sequence[FailRule]) -> RunComparison:
    """Compares two runs; see `compare_files`."""
    changes, gone, added = [], [], []
    for key in dict.fromkeys([*before.rows, *after.rows]):
        if key not in after.rows:
            gone.append(_name(key))
        elif key not in before.rows:
            added.append(_name(key))
        else:
            old, new = ({k: v for k, v in run.rows[key].items() if v is not None} for run in (before, after))
            changes += [_change(key, label, old[label], new[label]) for label in old if label in new]
            gone += [f"{_name(key)}: {label}" for label in old if label not in new]
            added += [f"{_name(key)}: {label}" for label in new if label not in old]
    return RunComparison(
        tuple(changes), tuple(gone), tuple(added), _warnings(before, after), _failures(changes, gone, rules)
    )


def _change(key: Key, label: str, before: float, after: float) -> Change:
    """One number."""
    metric = _metric(label)
    change = metric.change(before, after)
    loss = metric.loss(change)
    direction: Direction = "same" if abs(loss) <= metric.noise else "worse" if loss > 0 else "better"
    return Change(key, label, before, after, change, metric.unit, direction)


def _metric(label: str) -> Metric:
    """What a number is one of."""
    return METRICS[label.split()[0]]


def _warnings(before: BenchmarkFile, after: BenchmarkFile) -> tuple[str, ...]:
    """What makes two runs hard to compare, and rows whose status became worse."""
    warnings = []
    if (before.data, before.samples) != (after.data, after.samples):
        warnings.append(f"other data: {before.samples} samples of {before.data}, then {after.samples} of {after.data}")
    elif before.digest != after.digest:
        warnings.append(f"other samples of {before.data}: another choice, preprocessing or version; compare with care")
    if before.machine != after.machine:
        warnings.append(f"another machine: {before.machine}, then {after.machine}; times can't be compared")
    for key, status in after.statuses.items():
        old = before.statuses.get(key, status)
        if _RANKS.get(status, 3) > _RANKS.get(old, 3):
            warnings.append(f"{_name(key)}: {old}, now {status}")
    return tuple(warnings)


def _failures(changes: Sequence[Change], gone: Sequence[str], rules: Sequence[FailRule]) -> tuple[str, ...]:
    """The rules that are broken."""
    failures = []
    for rule in rules:
        for change in changes:
            metric = _metric(change.metric)
            # The rounding of a difference of percents is no loss.
            if metric.name == rule.metric and metric.loss(change.change) > rule.limit + 1e-9:
                failures.append(
                    f"{_name(change.row)}: {change.metric} {change.before:.4g} -> {change.after:.4g} "
                    f"({change.change:+.3g} {change.unit}), allowed is a loss of {rule.limit:g}"
                )
        for name in gone:
            label = name.rpartition(": ")[2] if ": " in name else rule.metric
            if label.split()[0] == rule.metric:
                failures.append(f"{name}: is gone, so that {rule} can't be held")
    return tuple(failures)


def _name(key: Key) -> str:
    """A row in words."""
    return ", ".join(key)
