"""The worth of a repair in accuracy, in words: more than chance or not, and whether it is all that was lost."""

from __future__ import annotations

from collections.abc import Sequence

from vsfix.pipeline.comparison.accuracy import AccuracyRow
from vsfix.pipeline.comparison.proportion import SIGNIFICANT
from vsfix.pipeline.report.number_text import count, percent, points, probability
from vsfix.pipeline.report.sections import BenchmarkRow, Report

_SAME_MODEL = 0.01  # the same network on another backend or in another precision is no farther off in top-1


def trained_and_first(accuracies: Sequence[AccuracyRow]) -> tuple[AccuracyRow, AccuracyRow] | None:
    """The model as trained and the repair that the page tells of; None where one of them was not measured.

    The best of several was chosen by these very labels, so that its interval and its p would promise too much.
    """
    trained, repaired = _split(accuracies)
    return (trained[0], repaired[0]) if trained and repaired else None


def damage_in_accuracy(accuracies: Sequence[AccuracyRow]) -> str:
    """The cost of the damage: the accuracy as trained, against a second level, or the repair from most images."""
    trained, repaired = _split(accuracies)
    if len(trained) > 1:  # a level to which nothing was repaired, as the mean of noisy passes
        level = trained[1]
        return f"As trained, top-1 is {percent(trained[0].accuracy)}; {level.model}: {percent(level.accuracy)}."
    if not trained or not repaired:
        return ""
    most = max(repaired, key=lambda row: row.images or 0)
    if most.accuracy <= trained[0].accuracy:
        return f"Top-1 is {percent(trained[0].accuracy)}, and the repair from most images reaches no more."
    by = f"{count(most.images)} images bring" if most.images else "the repair brings"
    return f"As trained, top-1 is {percent(trained[0].accuracy)}; {by} it to {percent(most.accuracy)}."


def worth_of_files(report: Report) -> str:
    """The worth of the repairs of the files of a benchmark, a sentence or two for each."""
    rows = [row for row in report.benchmark if row.repaired and row.gain is not None]
    return " ".join(_worth(row, report.accuracies) for row in rows)


def recovery_of_first(accuracies: Sequence[AccuracyRow]) -> str:
    """Whether the first repair brings back all that the others show to be lost."""
    trained, repaired = _split(accuracies)
    return _recovery(trained[0], repaired[0].accuracy, repaired[1:]) if trained and repaired else ""


def _split(accuracies: Sequence[AccuracyRow]) -> tuple[list[AccuracyRow], list[AccuracyRow]]:
    """As trained, and repaired."""
    return [row for row in accuracies if row.images is None], [row for row in accuracies if row.images is not None]


def _worth(row: BenchmarkRow, accuracies: Sequence[AccuracyRow]) -> str:
    """The worth of the repair of one file."""
    assert row.top1 is not None
    assert row.gain is not None
    assert row.gain_p_value is not None
    where = f"{row.model}: top-1 {percent(row.top1.value, 2)} ({row.backend}, {row.precision})"
    numbers = f"{where}, {points(row.gain)} percentage points by its repair, {probability(row.gain_p_value)}"
    if row.gain_p_value >= SIGNIFICANT:
        return f"Its statistics are, in {numbers}: no more than chance."
    if row.gain < 0:
        return f"No: accuracy was lost in {numbers}."
    trained, estimates = _split(accuracies)
    before = row.top1.value - row.gain / 100
    known = bool(trained) and abs(trained[0].accuracy - before) < _SAME_MODEL
    more = _recovery(trained[0], row.top1.value, estimates) if known else ""
    return f"Yes, in {numbers}. {more}".rstrip()


def _recovery(trained: AccuracyRow, reached: float, estimates: Sequence[AccuracyRow]) -> str:
    """How much of what the estimate on most images brings back a repair that reaches some top-1 does."""
    if reached <= trained.accuracy:
        return ""
    if not estimates:
        return "Whether that is all that was lost, this page does not tell: it holds no other estimate."
    best = max(estimates, key=lambda row: row.images or 0)
    named = f"the estimate on most images ({best.model}, {count(best.images or 0)} images: {percent(best.accuracy, 2)})"
    if reached >= best.low:
        return f"That is all that {named} brings back, within its 95 % interval."
    share = (reached - trained.accuracy) / (best.accuracy - trained.accuracy)
    share_text = f"That is {100 * share:.0f} % of the percentage points that {named} brings back"
    return f"{share_text}; more images may bring the rest."
