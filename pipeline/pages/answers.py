"""The questions of a reader, answered in words from the sections of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vsfix.graph_passes.statistics.shift import geometric_mean
from vsfix.pipeline.inspection.batch_norm_row import BatchNormRow
from vsfix.pipeline.inspection.diagnosis import (
    SHIFTED,
    is_within_chance,
    severity_sentence,
    shifted_rows,
    variances_beside,
    wrong_statistics,
)
from vsfix.pipeline.inspection.inspection import Inspection
from vsfix.pipeline.repair.repair_report import RepairReport
from vsfix.pipeline.report.latency_figure import p50_p99
from vsfix.pipeline.report.number_text import count, milliseconds, percent, points, probability, score_interval
from vsfix.pipeline.report.sections import LatencySeries, Report

from .batch_norm_table import batch_norm_lines
from .recovery import damage_in_accuracy, recovery_of_first, trained_and_first, worth_of_files
from .severity_view import is_taken, severity_of

_NAMED = 4  # latencies that a sentence can hold


@dataclass(frozen=True)
class Answer:
    """A question and its answer."""

    question: str
    text: str


def find_answers(report: Report) -> tuple[Answer, ...]:
    """The questions that the sections of a report can answer."""
    rows = tuple(line.before for line in batch_norm_lines(report))
    answers = [
        Answer("Was the model damaged?", _damage(report, rows)),
        Answer("Where?", _where(report, rows)),
        Answer("Was it repaired?", _repair(report)),
        Answer("How sure is that?", _certainty(report)),
        Answer("What does it cost at inference?", _cost(report)),
    ]
    return tuple(answer for answer in answers if answer.text)


def _damage(report: Report, rows: tuple[BatchNormRow, ...]) -> str:
    """R where it is known, else how many BatchNorms are off, and by how much; and what that costs in accuracy."""
    severity = severity_of(report)
    if report.inspection is not None and report.inspection.stored:
        return f"Yes, or the data is not that of the training. {wrong_statistics(report.inspection)}"
    if report.inspection is not None and report.inspection.fault is not None:
        fault = report.inspection.fault
        return f"Yes, but not by noise alone: {fault.sentence}."
    if report.inspection is not None and report.inspection.question:
        return f"Not clear: {report.inspection.question}."
    if severity is not None and severity.is_healthy:
        beside = Inspection(rows, (), report.samples, ())
        return f"No. {severity_sentence(severity)}{variances_beside(beside)}"
    if severity is not None:
        return f"Yes. {severity_sentence(severity)}" + _sentence(damage_in_accuracy(report.accuracies))
    if not rows:
        return ""
    shifted, known = shifted_rows(rows), [row for row in rows if row.known_variance_ratio is not None]
    how = "measured" if any(row.mismatch is not None for row in rows) else "predicted from what the file stores"
    if shifted and not _is_sure(report, shifted[0]):
        return (
            f"Not clear. The worst stored variance that noise reaches is off by a factor of "
            f"{shifted[0].known_variance_ratio:.2f}, which a healthy BatchNorm may show on so few samples."
        )
    if shifted:
        return (
            f"Yes. The noise of training leaves {len(shifted)} of {len(rows)} BatchNorms with a stored variance that "
            f"is off by a tenth or more ({how}), the worst by a factor of {shifted[0].known_variance_ratio:.2f}."
        ) + _sentence(damage_in_accuracy(report.accuracies))
    if not known:
        return "Not measured: there was no data to run the model on."
    off = [row for row in known if (row.known_variance_ratio or 0) >= SHIFTED]
    worst = max(off, key=lambda row: row.known_variance_ratio or 0.0, default=None)
    if worst is not None and is_within_chance(worst.known_variance_ratio or 0.0, report.samples):
        return (
            f"No, as far as {count(report.samples)} samples tell: the worst stored variance is off by a factor of "
            f"{worst.known_variance_ratio:.2f}, which a healthy BatchNorm may show on so few."
        )
    if off:
        return (
            f"Not by noise. The stored variance of {_number(len(off), 'BatchNorm')} that no noise reaches is off by a "
            "tenth or more on this data: is it that of the training, preprocessed the same way?"
        )
    if any(row.noise and row.known_variance_ratio is None for row in rows):
        return f"Not as far as is known: of {len(rows)} BatchNorms, {len(known)} are within a tenth ({how})."
    return f"No. Every stored variance is within a tenth of the real one ({how})."


def _is_sure(report: Report, worst: BatchNormRow) -> bool:
    """Whether the worst variance ratio is damage and no chance: a repair has intervals for that, else it is large."""
    proven = report.repair is not None and any(outcome.repaired for outcome in report.repair.batch_norms)
    return proven or not is_within_chance(worst.known_variance_ratio or 0.0, report.samples)


def _where(report: Report, rows: tuple[BatchNormRow, ...]) -> str:
    """The worst BatchNorm and its noise; the layer that is farthest from the average where that was measured."""
    severity = severity_of(report)
    if severity is not None and severity.is_healthy:
        return ""
    if report.repair is not None and report.repair.layers:
        return _farthest(report.repair, rows)
    shifted = shifted_rows(rows)
    if not shifted:
        return ""
    worst, reached = shifted[0], sum(bool(row.noise) for row in rows)
    where = {"direct": "directly downstream of", "linear": "downstream of a linear layer and"}.get(
        worst.distance, "downstream of"
    )
    return (
        f"Most in '{worst.name}', {where} the noise layer '{worst.source}' ({worst.noise}). Noise reaches {reached} of "
        f"{len(rows)} BatchNorms; the table of BatchNorms lists each."
    )


def _farthest(repair: RepairReport, rows: tuple[BatchNormRow, ...]) -> str:
    """The layer whose output is farthest from the noise-averaged network, and the noise that reaches it."""
    worst = max(repair.layers, key=lambda row: row.before)
    noise = next((row for row in rows if row.name == worst.name and row.noise), None)
    downstream = (
        f", downstream of the noise layer '{noise.source}' ({noise.noise})"
        if noise is not None and noise.source
        else ""
    )
    return (
        f"What '{worst.name}' gives{downstream}, is farthest from the noise-averaged network: a distance of "
        f"{worst.before:.3g}, now {worst.after:.3g}. The figure below shows each of {len(repair.layers)} layers."
    )


def _repair(report: Report) -> str:
    """The remedy that was taken."""
    severity = severity_of(report)
    if report.inspection is not None and severity is not None:
        if severity.is_healthy and not report.inspection.stored:
            return "There is nothing to repair."
        return "Not yet: the model was only looked at. The command vsfix optimize repairs it."
    if report.inspection is not None and shifted_rows(report.inspection.rows):
        return "Not yet: the model was only looked at. The command vsfix optimize repairs it."
    in_files = worth_of_files(report)
    if report.repair is None:
        return in_files
    outcomes = report.repair.batch_norms
    repaired = [outcome for outcome in outcomes if outcome.repaired]
    if severity is not None and not report.is_trial and report.status != "FAIL":
        return _repair_by_severity(report.repair) + _sentence(recovery_of_first(report.accuracies))
    if report.is_trial and (repaired or in_files):
        tried = f"{len(repaired)} of {len(outcomes)} BatchNorms, by the method {report.repair.method}"
        again = f"{in_files} Tried anew" if in_files else "Tried"
        written = " No file of this page is repaired: the command vsfix optimize writes one."
        more = "" if in_files else _sentence(recovery_of_first(report.accuracies)) + written
        return f"{again} for this page, without writing a file: {tried}.{more}"
    if not repaired:
        return "No: the evidence supports no change, and nothing was changed without."
    if report.status == "FAIL":
        return "No: the repair failed a check; the first line says which."
    left = [outcome.after.mismatch for outcome in repaired if outcome.after.mismatch is not None]
    worst = f"; the worst stored variance among them is now off by a factor of {max(left):.2f}" if left else ""
    before = [outcome.before.mismatch for outcome in repaired if outcome.before.mismatch is not None]
    worse = (
        left and before and geometric_mean(np.array(left)) > geometric_mean(np.array(before))
    )  # as the verdict has it
    word = "Changed, and farther off than before on this data" if worse else "Yes"
    done = f"{word}: {len(repaired)} of {len(outcomes)} BatchNorms, by the method {report.repair.method}{worst}."
    return done + _sentence(recovery_of_first(report.accuracies))


def _repair_by_severity(repair: RepairReport) -> str:
    """The remedy that was taken where R is known."""
    before, after = repair.severity_before, repair.severity_after
    if before is None or after is None or repair.method == "none":
        healthy = repair.severity is not None and repair.severity.is_healthy
        return "There was nothing to repair, and nothing was changed." if healthy else f"No: {repair.method_reason}."
    decisions = (
        ""
        if before.changed is None or after.changed is None
        else f"; decisions that differ: {percent(before.changed)} -> {percent(after.changed)}"
    )
    word = "Yes" if after.ratio < before.ratio else "Changed, and farther from the noise-averaged network than before"
    return f"{word}: R {before.ratio:.2f} -> {after.ratio:.2f}, by the method {repair.method}{decisions}."


def _certainty(report: Report) -> str:
    """The data and the samples that the numbers rest on."""
    parts = []
    severity = severity_of(report)
    if report.inspection is not None and severity is not None:
        parts.append(
            f"R rests on {count(severity.samples)} samples; its 95 % interval is {severity.low:.2f} – "
            f"{severity.high:.2f}."
        )
    if report.inspection is not None and report.inspection.samples:
        parts.append(f"The variances were measured on {count(report.inspection.samples)} samples with the noise off.")
    if report.repair is not None:
        parts.append(_repair_certainty(report.repair))
    pair = trained_and_first(report.accuracies)
    if pair is not None:
        first, last = pair[0].score, pair[1].score
        ends = score_interval(first), score_interval(last)
        test = "McNemar's test" if last.count is not None else "the paired test"
        paired = "" if pair[1].p_value is None else f"; {test} on the same samples: {probability(pair[1].p_value)}"
        if all(ends):
            apart = "do not overlap" if last.low > first.high or first.low > last.high else "overlap"
            told = f"{ends[0]} as trained and {ends[1]} repaired"
            parts.append(f"The 95 % intervals of {first.metric}, {told}, {apart}{paired}.")
    if report.scores is not None:
        scores = report.scores
        values = f"{scores.value(scores.before)} as trained, {scores.value(scores.after)} repaired"
        parts.append(f"On the labels, {scores.subject}: {values}; {scores.details}.")
    agreements = report.repair.agreements if report.repair is not None else ()
    parts += [f"{row.sentence[0].upper()}{row.sentence[1:]}." for row in agreements]
    return " ".join(part for part in parts if part)


def _repair_certainty(repair: RepairReport) -> str:
    """On how many samples a repair was estimated and judged, and how many of its intervals exclude no shift."""
    intervals = [outcome.interval for outcome in repair.batch_norms if outcome.interval is not None]
    sure = sum(not low <= 1 <= high for low, high in intervals)
    parts = [f"The repair rests on {repair.data}."] if repair.method != "none" else []
    taken = next((row for row in repair.candidates if is_taken(row, repair)), None)
    if taken is not None and taken.name != repair.candidates[0].name:
        parts.append(
            f"R changed by {points(taken.difference)} (95 % interval {points(taken.low)} to {points(taken.high)}) on "
            f"{count(repair.judges)} samples that judge."
        )
    if repair.judged_on:
        parts.append(f"The variances before and after were measured on {count(repair.judged_on)} samples.")
    if intervals:
        shifts = _number(len(intervals), "estimated shift")
        parts.append(f"Of {shifts}, {sure} have a 95 % interval without 1, which is no shift.")
    return " ".join(parts)


def _cost(report: Report) -> str:
    """The cost that the repair adds to a run, and what was timed."""
    parts = []
    if report.repair is not None:
        folded = sum(outcome.folded for outcome in report.repair.batch_norms)
        parts.append(
            f"The repair changes stored numbers and adds no operator. Folded away: {folded} of "
            f"{_number(len(report.repair.batch_norms), 'BatchNorm')}; removed: "
            f"{_number(len(report.repair.removed), 'noise layer or identity', 'noise layers and identities')}."
        )
    if 0 < len(report.latencies) <= _NAMED:
        timed = [_timing(series) for series in report.latencies]
        parts.append(f"Median latency: {', '.join(timed)}.")
    elif ratios := [s for s in report.latencies if s.ratio is not None and s.ratio_interval is not None]:
        parts.append(_ratios(ratios))
    elif report.latencies or any(row.p50_ms is not None for row in report.benchmark):
        parts.append("A table below holds the latency of each model.")
    elif parts:
        parts.append("Its speed was not timed for this page.")
    return " ".join(parts)


def _ratios(series: Sequence[LatencySeries]) -> str:
    """How many latencies compare with their baselines, and in how many of them that is more than chance."""
    ratios = [one.ratio for one in series if one.ratio is not None]
    same = sum(one.ratio_interval is not None and one.ratio_interval[0] <= 1 <= one.ratio_interval[1] for one in series)
    return (
        f"Median latency over that of the first model on the same backend in the same precision: {min(ratios):.2f} "
        f"to {max(ratios):.2f} in {_number(len(ratios), 'measurement')}; {same} of their 95 % intervals hold 1, which "
        "is no difference. A table below holds the times."
    )


def _timing(series: LatencySeries) -> str:
    """The median of a series, and how it compares with its baseline."""
    baseline = "" if series.ratio in (None, 1) else f", {series.ratio:.2f} times its baseline{_spread(series)}"
    return f"{series.name} {milliseconds(p50_p99(series)[0])} ms (batch {series.batch_size}{baseline})"


def _spread(series: LatencySeries) -> str:
    """The interval of a ratio: one that holds 1 is no difference."""
    if series.ratio_interval is None:
        return ""
    low, high = series.ratio_interval
    return f", 95 % interval {low:.2f} – {high:.2f}{', which holds 1' if low <= 1 <= high else ''}"


def _sentence(text: str) -> str:
    """One more sentence after another; nothing where there is none."""
    return text and f" {text}"


def _number(count_of: int, one: str, more: str = "") -> str:
    """A count with what is counted, in the singular where it is one."""
    return f"{count_of} {one if count_of == 1 else more or one + 's'}"
