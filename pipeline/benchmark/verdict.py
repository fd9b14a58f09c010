"""The benchmark in one sentence: repaired, nothing to repair, or damaged and not repaired yet, with the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from vsfix.pipeline.comparison.accuracy import AccuracyRow
from vsfix.pipeline.comparison.proportion import SIGNIFICANT
from vsfix.pipeline.comparison.score_difference import FEWEST, ScoreDifference

from .result import RepairTrials, Row, Status


def verdict_of(rows: Sequence[Row], repairs: RepairTrials | None) -> tuple[Status, str]:
    """The status word and the sentence; FAIL too where a row could not be made or run, though nothing is missing here.

    A repaired model is judged by its first row, against the row of the model before its repair: FAIL where the metric
    is worse by more than chance. Of several the first is told, or the first that failed. Where no row shows a repair,
    what the repairs of this run show is judged. Without labels nothing is: WARN, with how far the rows are apart.
    """
    ran = [row for row in rows if row.ran]
    status, verdict = _judge_unlabelled(ran) if ran[0].score is None else _judge_labelled(ran, repairs)
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


def _judge_unlabelled(ran: Sequence[Row]) -> tuple[Status, str]:
    """How far the rows are from the reference, of which nobody knows how right it is."""
    found = [row.against_reference for row in ran if row.against_reference is not None]
    if not found:
        return "WARN", f"No labels: accuracy unknown; {ran[0].label} ran, and no other row is there to agree with it"
    parts = [f"SNR {_decibels(min(one.snr_db for one in found))}"]
    if decided := [one.decisions.agreement for one in found if one.decisions is not None]:
        parts.insert(0, f"{100 * min(decided):.2f} % of the decisions agree")
    elif cosines := [one.cosine for one in found if one.cosine is not None]:
        parts.insert(0, f"cosine {min(cosines):.6f}")
    least = "" if len(found) == 1 else ", of the row that is farthest"
    return "WARN", f"No labels: accuracy unknown; against {ran[0].label} {', '.join(parts)}{least}"


def _judge_labelled(ran: Sequence[Row], repairs: RepairTrials | None) -> tuple[Status, str]:
    """What the labels say of a repair."""
    repaired = [row for row in ran if row.against_unrepaired is not None]
    found = [_judge_repaired(row, ran[0], f"{row.model}, " if len(repaired) > 1 else "") for row in repaired]
    return min(found, key=lambda one: one[0] != "FAIL") if found else _judge_repairs(ran[0], repairs)


def _judge_repaired(repaired: Row, reference: Row, name: str) -> tuple[Status, str]:
    """A repaired model against what it was before; named where it is not the only one."""
    assert repaired.against_unrepaired is not None
    found = repaired.against_unrepaired.difference
    assert found is not None
    before = repaired.against_unrepaired.baseline
    baseline, against = ("the reference", "") if before == reference.label else (before, f" against {before}")
    flips = "" if found.fixes is None else f", {found.fixes} fixes, {found.regressions} regressions"
    numbers = f"{name}{_arrow(found)} ({found.change}{against}{flips}, p {_probability(found.p_value)})"
    if not found.is_told:
        return "WARN", f"Repaired, and {_too_few(found.samples)} whether that gained or lost: {numbers}"
    if found.is_worse:
        return "FAIL", f"The repair {'lost accuracy' if found.unit else 'made it worse'}: {numbers}"
    if found.is_doubtful:
        return "WARN", f"Repaired, and the labels are too few to tell whether the loss is chance: {numbers}"
    apart = "" if found.is_better else f", and no more than chance apart from {baseline}"
    said, against_before = f"Repaired{apart}: {numbers}", repaired.against_unrepaired
    others = [output for output in against_before.outputs if output != against_before.output]
    if others and found.output is not None:  # a repair may serve one output at the cost of another
        return "WARN", f"{said}; what it does to {', '.join(others)} no label judges"
    return "PASS", said


def _judge_repairs(reference: Row, repairs: RepairTrials | None) -> tuple[Status, str]:
    """No row shows what a repair was worth."""
    assert reference.score is not None
    found = reference.score.text()
    if repairs is None:
        if reference.repaired:
            return "PASS", f"The reference is repaired, and no row shows it as it was before: {found}"
        return "PASS", f"No repair was looked for: {found}"
    before = repairs.accuracies[0]
    name = "" if repairs.model == reference.model else f"{repairs.model}, "
    found = f"{name}{before.score.text()}"
    if repairs.report is None:
        return "WARN", f"No repair could be made: {found}; {repairs.refused[0]}"
    if not any(outcome.repaired for outcome in repairs.report.batch_norms):
        return "PASS", f"Nothing to repair: {found}; no BatchNorm holds statistics that its noise has shifted"
    after = repairs.accuracies[1]
    assert after.p_value is not None
    numbers = f"{name}{_both(before, after)} with {_way(after)}, p {_probability(after.p_value)}"
    if after.score.samples < FEWEST:
        return "WARN", f"Shifted, and {_too_few(after.score.samples)} what a repair is worth: {numbers}"
    if after.p_value >= SIGNIFICANT:
        metric = "accuracy" if after.score.unit else after.score.metric
        return "PASS", f"Shifted, with no more effect on the {metric} than chance: {numbers}"
    if after.score.is_above(before.score):
        return "WARN", f"Damaged by variance shift, and can be repaired: {numbers}; run `vsfix optimize`"
    loses = "loses accuracy" if after.score.unit else "makes it worse"
    return "FAIL", f"Shifted, and the repair {loses}: {numbers}"


def _too_few(samples: int) -> str:
    """That labels are too few."""
    return f"{samples} labelled {'sample' if samples == 1 else 'samples'} can't tell, of which {FEWEST} are needed,"


def _arrow(found: ScoreDifference) -> str:
    """Both numbers, those of shares to the hundredth."""
    return f"{found.metric} {found.before:.2f} -> {found.after:.2f} %" if found.unit else found.arrow


def _both(before: AccuracyRow, after: AccuracyRow) -> str:
    """The metric before and after."""
    one, two = before.score, after.score
    return f"{one.metric} {one.number(one.value).removesuffix(' %')} -> {two.number(two.value)}"


def _way(row: AccuracyRow) -> str:
    """A method and its images."""
    return f"{row.model}, {row.images} images"


def _decibels(snr_db: float) -> str:
    """The SNR of the row that is farthest off."""
    return "exact" if snr_db == float("inf") else f"{snr_db:.1f} dB"


def _probability(value: float) -> str:
    """A p value as a person writes it."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
