"""The benchmark in one sentence: repaired, nothing to repair, or damaged and not repaired yet, with the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from vsfix.pipeline.comparison.accuracy import AccuracyRow
from vsfix.pipeline.comparison.proportion import SIGNIFICANT

from .result import RepairTrials, Row, Status


def judge(rows: Sequence[Row], repairs: RepairTrials | None) -> tuple[Status, str]:
    """The status word and the sentence; FAIL too where a row could not be made or run, though nothing is missing here.

    A repaired model is judged by its first row, against the row of the model before its repair: FAIL where it lost
    accuracy by more than chance. Of several the first is told, or the first that failed. Where no row shows a repair,
    what the repairs of this run show is judged.
    """
    ran = [row for row in rows if row.top1 is not None]
    repaired = [row for row in ran if row.against_unrepaired is not None]
    found = [_judge_repaired(row, ran[0], f"{row.model}, " if len(repaired) > 1 else "") for row in repaired]
    status, verdict = min(found, key=lambda one: one[0] != "FAIL") if found else _judge_repairs(ran[0], repairs)
    skipped, differing = (sum(row.status in words for row in rows) for words in (("SKIP", "FAIL"), ("WARN",)))
    if differing:
        own = "their own model by more than their precision explains"
        verdict += f"; {differing} of {len(rows)} rows differ from {own}"
    if skipped:
        verdict += f"; {skipped} of {len(rows)} rows did not run"
    if any(row.status == "FAIL" for row in rows):
        return "FAIL", verdict + "."
    worse = status == "PASS" and (skipped or differing)
    return ("WARN" if worse else status), verdict + "."


def _judge_repaired(repaired: Row, reference: Row, name: str) -> tuple[Status, str]:
    """A repaired model against what it was before; named where it is not the only one."""
    assert repaired.against_unrepaired is not None
    task = repaired.against_unrepaired.decisions.task
    assert task is not None
    points = 100 * (task.output.value - task.reference.value)
    before = repaired.against_unrepaired.baseline
    baseline, against = ("the reference", "") if before == reference.label else (before, f" against {before}")
    numbers = (
        f"{name}top-1 {100 * task.reference.value:.2f} -> {100 * task.output.value:.2f} % ({points:+.2f} percentage "
        f"points{against}, {task.bad_to_good} fixes, {task.good_to_bad} regressions, p {_probability(task.p_value)})"
    )
    if task.p_value >= SIGNIFICANT:
        return "PASS", f"Repaired, and no more than chance apart from {baseline}: {numbers}"
    if points > 0:
        return "PASS", f"Repaired: {numbers}"
    return "FAIL", f"The repair lost accuracy: {numbers}"


def _judge_repairs(reference: Row, repairs: RepairTrials | None) -> tuple[Status, str]:
    """No row shows what a repair was worth."""
    assert reference.top1 is not None
    found = f"top-1 {100 * reference.top1.value:.2f} %"
    if repairs is None:
        if reference.repaired:
            return "PASS", f"The reference is repaired, and no row shows it as it was before: {found}"
        return "PASS", f"No repair was looked for: {found}"
    before = repairs.accuracies[0]
    name = "" if repairs.model == reference.model else f"{repairs.model}, "
    found = f"{name}top-1 {100 * before.accuracy:.2f} %"
    if repairs.report is None:
        return "WARN", f"No repair could be made: {found}; {repairs.refused[0]}"
    if not any(outcome.repaired for outcome in repairs.report.batch_norms):
        return "PASS", f"Nothing to repair: {found}; no BatchNorm holds statistics that its noise has shifted"
    after = repairs.accuracies[1]
    assert after.p_value is not None
    numbers = (
        f"{name}top-1 {100 * before.accuracy:.2f} -> {100 * after.accuracy:.2f} % with {_way(after)}, "
        f"p {_probability(after.p_value)}"
    )
    if after.p_value >= SIGNIFICANT:
        return "PASS", f"Shifted, with no more effect on the accuracy than chance: {numbers}"
    if after.accuracy > before.accuracy:
        return "WARN", f"Damaged by variance shift, and can be repaired: {numbers}; run `vsfix optimize`"
    return "FAIL", f"Shifted, and the repair loses accuracy: {numbers}"


def _way(row: AccuracyRow) -> str:
    """A method and its images."""
    return f"{row.model}, {row.images} images"


def _probability(value: float) -> str:
    """A p value as a person writes it."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
