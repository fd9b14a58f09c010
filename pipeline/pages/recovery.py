"""The worth of a repair by the metric, in words: more than chance or not, and whether it is all that was lost."""

from __future__ import annotations

from collections.abc import Sequence

from vsfix.pipeline.comparison.accuracy import AccuracyRow
from vsfix.pipeline.comparison.score_difference import Score
from vsfix.pipeline.report.number_text import MINUS, count, headed, probability
from vsfix.pipeline.report.sections import BenchmarkRow, Report

_SAME_MODEL = 1.0  # percent: the same network on another backend or in another precision is no farther off


def trained_and_first(accuracies: Sequence[AccuracyRow]) -> tuple[AccuracyRow, AccuracyRow] | None:
    """The model as trained and the repair that the page tells of; None where one of them was not measured.

    The best of several was chosen by these very labels, so that its interval and its p would promise too much.
    """
    trained, repaired = _split(accuracies)
    return (trained[0], repaired[0]) if trained and repaired else None


def damage_in_accuracy(accuracies: Sequence[AccuracyRow]) -> str:
    """The cost of the damage: the accuracy as trained, against a second level, or the repair from most images."""
    trained, repaired = _split(accuracies)
    if not trained:
        return ""
    first = trained[0].score
    if len(trained) > 1:  # a level to which nothing was repaired, as the mean of noisy passes
        level = trained[1]
        return f"As trained, {first.metric} is {_short(first)}; {level.model}: {_short(level.score)}."
    if not repaired:
        return ""
    most = max(repaired, key=lambda row: row.images or 0)
    tried = repaired[0]
    if not most.score.is_above(first) and tried.score.is_above(first):
        others = f"and {most.model} on {count(most.images or 0)} images to {_short(most.score)}"
        by = f"{tried.model} brings it to {_short(tried.score)}"
        return f"As trained, {first.metric} is {_short(first)}; {by}, {others}."
    if not most.score.is_above(first):
        return f"{headed(first.metric)} is {_short(first)}, and the repair from most images reaches no better."
    by = f"{count(most.images)} images bring" if most.images else "the repair brings"
    return f"As trained, {first.metric} is {_short(first)}; {by} it to {_short(most.score)}."


def worth_of_files(report: Report) -> str:
    """The worth of the repairs of the files of a benchmark, a sentence or two for each."""
    rows = [row for row in report.benchmark if row.repaired and row.repair_gain is not None]
    return " ".join(_worth(row, report.accuracies) for row in rows)


def recovery_of_first(accuracies: Sequence[AccuracyRow]) -> str:
    """Whether the first repair brings back all that the others show to be lost."""
    trained, repaired = _split(accuracies)
    return _recovery(trained[0].score, repaired[0].score.value, repaired[1:]) if trained and repaired else ""


def _split(accuracies: Sequence[AccuracyRow]) -> tuple[list[AccuracyRow], list[AccuracyRow]]:
    """As trained, and repaired."""
    return [row for row in accuracies if row.images is None], [row for row in accuracies if row.images is not None]


def _worth(row: BenchmarkRow, accuracies: Sequence[AccuracyRow]) -> str:
    """The worth of the repair of one file."""
    found = row.repair_gain
    assert row.score is not None
    assert found is not None
    where = f"{row.model}: {row.score.text()} ({row.backend}, {row.precision})"
    numbers = f"{where}, {found.change.replace('-', MINUS)} by its repair, {probability(found.p_value)}"
    if not (found.is_better or found.is_worse):
        return f"Its statistics are, in {numbers}: no more than chance."
    if found.is_worse:
        return f"No: {'accuracy was lost' if found.unit else 'it is worse'} in {numbers}."
    trained, estimates = _split(accuracies)
    known = bool(trained) and _is_same(trained[0].score, found.before)
    more = _recovery(trained[0].score, row.score.value, estimates) if known else ""
    return f"Yes, in {numbers}. {more}".rstrip()


def _is_same(trained: Score, before: float) -> bool:
    """Whether two values may be of one network, on other backends or in other precisions."""
    return abs(trained.value - before) < (_SAME_MODEL if trained.unit else _SAME_MODEL / 100 * abs(trained.value))


def _recovery(trained: Score, reached: float, estimates: Sequence[AccuracyRow]) -> str:
    """How much of what the estimate on most images brings back a repair that reaches some value does."""
    sign = -1 if trained.is_loss else 1
    if sign * reached <= sign * trained.value:
        return ""
    if not estimates:
        return "Whether that is all that was lost, this page does not tell: it holds no other estimate."
    best = max(estimates, key=lambda row: row.images or 0)
    score = best.score
    named = f"the estimate on most images ({best.model}, {count(best.images or 0)} images: {score.number(score.value)})"
    if not score.is_above(trained):
        return f"What was lost in all, this page does not tell: {named} is no better than as trained."
    if sign * reached >= sign * (score.high if trained.is_loss else score.low):
        return f"That is all that {named} brings back, within its 95 % interval."
    share = (reached - trained.value) / (score.value - trained.value)
    of = "the percentage points that" if trained.unit else "what"
    return f"That is {100 * share:.0f} % of {of} {named} brings back; more images may bring the rest."


def _short(score: Score) -> str:
    """The value of a metric, shares to a tenth of a percent."""
    return score.number(score.value, 1)
