"""The benchmark in one sentence: repaired, nothing to repair, or damaged and not repaired yet, with the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from vsfix.pipeline.accuracy import AccuracyRow

from .result import RepairTrials, Row, Status

SIGNIFICANT = 0.05  # McNemar's p below this is more than chance


def judge(rows: Sequence[Row], repairs: RepairTrials | None) -> tuple[Status, str]:
    """The status word and the sentence.

    A repaired model is judged against the reference by its first row; where none was given, by what the repairs of
    this run show. FAIL where the repair lost accuracy by more than chance.
    """
    ran = [row for row in rows if row.top1 is not None]
    repaired = next((row for row in ran if row.repaired and row.against_reference is not None), None)
    status, verdict = _judge_repaired(ran[0], repaired) if repaired else _judge_repairs(ran[0], repairs)
    skipped, departed = (sum(row.status in words for row in rows) for words in (("SKIP", "FAIL"), ("WARN",)))
    if departed:
        verdict += f"; {departed} of {len(rows)} rows depart from their own model by more than their precision explains"
    if skipped:
        verdict += f"; {skipped} of {len(rows)} rows did not run"
    worse = status == "PASS" and (skipped or departed)
    return ("WARN" if worse else status), verdict + "."


def _judge_repaired(reference: Row, repaired: Row) -> tuple[Status, str]:
    """A repaired model among the rows."""
    assert reference.top1 is not None
    assert repaired.top1 is not None
    assert repaired.against_reference is not None
    task = repaired.against_reference.decisions.task
    assert task is not None
    points = 100 * (repaired.top1.value - reference.top1.value)
    numbers = (
        f"top-1 {100 * reference.top1.value:.2f} -> {100 * repaired.top1.value:.2f} % ({points:+.2f} points, "
        f"{task.bad_to_good} samples better, {task.good_to_bad} worse, p {_probability(task.p_value)})"
    )
    if task.p_value >= SIGNIFICANT:
        return "PASS", f"Repaired, and no more than chance apart from the reference: {numbers}"
    if points > 0:
        return "PASS", f"Repaired: {numbers}"
    return "FAIL", f"The repair lost accuracy: {numbers}"


def _judge_repairs(reference: Row, repairs: RepairTrials | None) -> tuple[Status, str]:
    """No repaired model among the rows."""
    assert reference.top1 is not None
    found = f"top-1 {100 * reference.top1.value:.2f} %"
    if repairs is None:
        return "PASS", f"No repair was looked for: {found}"
    if repairs.report is None:
        return "WARN", f"No repair could be made: {found}; {repairs.refused[0]}"
    if not any(outcome.repaired for outcome in repairs.report.batch_norms):
        return "PASS", f"Nothing to repair: {found}; no BatchNorm holds statistics that its noise has shifted"
    before, after = repairs.accuracies[0], repairs.accuracies[1]
    numbers = f"top-1 {100 * before.accuracy:.2f} -> {100 * after.accuracy:.2f} % with {_way(after)}"
    if after.low > before.high:
        return "WARN", f"Damaged by variance shift, and can be repaired: {numbers}; run `vsfix optimize`"
    if after.high < before.low:
        return "FAIL", f"Shifted, and the repair loses accuracy: {numbers}"
    return "PASS", f"Shifted, with no more effect on the accuracy than chance: {numbers}"


def _way(row: AccuracyRow) -> str:
    """A method and its images."""
    return f"{row.model}, {row.images} images"


def _probability(value: float) -> str:
    """A p value as a person writes it."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
