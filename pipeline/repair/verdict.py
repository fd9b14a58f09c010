"""The verdict of a repair: its status word, one sentence, and what is refused."""

from __future__ import annotations

import numpy as np

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.noise_average.severity import HEALTHY
from vsfix.graph_passes.statistics.shift import geometric_mean
from vsfix.pipeline.comparison.score_difference import FEWEST

from .averaging import UNDER_NOISE
from .label_judge import LabelScores
from .repair_report import RepairReport

MAX_VARIANCE_RATIO = 10.0  # of a repaired BatchNorm; a repair that works leaves it near 1
MAX_UNEXPLAINED = 1000.0  # of a variance; pixels that were not divided by 255, or twice, are off by 65,000


def require_plausible(report: RepairReport, *, shown: bool = False) -> None:
    """Refuses a repair on data that can't be the training's: by what the first BatchNorms see, or by what is left.

    The worst BatchNorm after a repair that works stores what the data shows; methods that write what they measured
    bring that about on any data, so what they measured is looked at too, but for BatchNorms whose statistics were to be
    replaced without any noise in front.

    Args:
        report: of the repair.
        shown: labelled data has shown that the repair loses no accuracy; that tells more than what BatchNorms see.

    Raises:
        CheckFailedError: names the BatchNorm.
    """
    outcomes = report.batch_norms if any(o.repaired for o in report.batch_norms) else ()
    unchanged = [o for o in outcomes if not o.before.noise and not o.repaired]
    for row in [o.before for o in (*outcomes[:1], *unchanged[:1]) if o.before.noise or not o.repaired]:
        if row.unexplained is not None and row.unexplained > MAX_UNEXPLAINED and not shown:
            raise CheckFailedError(
                f"refused: the variance that BatchNorm '{row.name}' sees on this data is off by a factor of "
                f"{row.unexplained:.0f} from what its noise explains: is it the data of the training, preprocessed the "
                "same way? no model is written; where it is, labelled data can show it (--eval-data)"
            )
    worst = max((o.after for o in report.batch_norms if o.repaired), key=lambda row: row.mismatch or 0, default=None)
    if worst is not None and worst.mismatch is not None and worst.mismatch > MAX_VARIANCE_RATIO:
        raise CheckFailedError(
            f"refused: after the repair BatchNorm '{worst.name}' still stores a variance that is off by a factor of "
            f"{worst.mismatch:.0f} on this data: is it the data of the training, preprocessed the same way? "
            "no model is written"
        )


def judge(report: RepairReport, scores: LabelScores | None = None) -> tuple[str, str]:
    """The status word and the verdict in one sentence."""
    status, verdict = _judge(report, scores)
    if scores is not None and not scores.is_told and _is_changed(report):
        few = f"on {scores.samples} labelled samples, which are too few to tell whether it gained or lost; {FEWEST} do"
        return "WARN", f"{verdict.rstrip('.')}, {few}."
    if scores is not None and scores.is_doubtful:
        doubt = f"the labels are too few to tell whether that is chance (p = {scores.p_value:.2g})"
        return "WARN", f"{verdict.rstrip('.')}; {doubt}{scores.allowed}."
    if scores is None or not scores.is_worse:
        return status, verdict
    return "WARN", f"{verdict.rstrip('.')}; on the labels it is worse by more than chance{scores.allowed}."


def _judge(report: RepairReport, scores: LabelScores | None) -> tuple[str, str]:
    """The status and the verdict by R and by what labels gain."""
    folded = sum(outcome.folded for outcome in report.batch_norms)
    tail = (f"; {folded} of {len(report.batch_norms)} folded" if report.batch_norms else "") + _precision(report)
    if not _is_changed(report):
        if report.severity is not None and not report.severity.is_healthy:
            return "WARN", f"Damaged (R = {report.severity.ratio:.2f}) and not repaired: {report.method_reason}{tail}."
        unclear = (scores is None or not scores.is_told) and _is_unclear(report)
        return ("WARN" if report.warnings or unclear else "PASS"), f"Nothing repaired: {report.method_reason}{tail}."
    verdict = _what_was_done(report) + tail
    if scores is not None:
        verdict += f"; {scores.sentence}"
    better = scores is not None and scores.is_better
    before, after = report.severity_before, report.severity_after
    if before is not None and after is not None:
        if after.ratio > before.ratio and better and scores is not None and scores.unjudged:
            unjudged = ", ".join(f"'{name}'" for name in scores.unjudged)
            return "WARN", f"{verdict}: farther from its noise-averaged network, and no label judges {unjudged}."
        if after.ratio > before.ratio and better:
            verdict += ": farther from its noise-averaged network, and better on the labels"
        elif after.ratio > before.ratio:
            return "WARN", verdict + ": the file is farther from its noise-averaged network than before."
        elif after.ratio >= HEALTHY:
            return "WARN", verdict + ": it is nearer, and still far from its noise-averaged network."
        return ("WARN" if report.warnings else "PASS"), verdict + "."
    if better:
        return ("WARN" if report.warnings else "PASS"), verdict + ": better on the labels, by more than chance."
    return "WARN", verdict + _unproven(report, labelled=scores is not None)


def _is_changed(report: RepairReport) -> bool:
    """Whether anything was repaired."""
    return report.method != "none" and (
        report.severity_after is not None or any(outcome.repaired for outcome in report.batch_norms)
    )


def _is_unclear(report: RepairReport) -> bool:
    """Whether R does not tell if a file that stays as it is needs a repair."""
    on_judges = report.severity_before
    is_far = on_judges is not None and not on_judges.is_healthy
    return is_far or (report.severity is not None and report.severity.is_open)


def _what_was_done(report: RepairReport) -> str:
    """The changes, the method, and R before and after."""
    before, after = report.severity_before, report.severity_after
    done = [row.before.name for row in report.batch_norms if row.repaired]
    what = f"{len(done)} of {len(report.batch_norms)} BatchNorms" if done else "the linear layers"
    verdict = f"Repaired {what} ({report.method}, {report.data})"
    if before is not None and after is not None:
        return verdict + f"; R, the distance to what was trained: {before.ratio:.2f} -> {after.ratio:.2f}"
    shifts = _shifts(report)
    return verdict if shifts is None else f"{verdict}; stored against real variance: {shifts[0]:.2f} -> {shifts[1]:.2f}"


def _shifts(report: RepairReport) -> tuple[float, float] | None:
    """The geometric mean of the repaired BatchNorms' variance ratios, before and after; None where not measured."""
    repaired = [outcome for outcome in report.batch_norms if outcome.repaired]
    if not report.judged_on or not repaired:
        return None
    before, after = (
        geometric_mean(np.array([getattr(outcome, side).mismatch or np.nan for outcome in repaired]))
        for side in ("before", "after")
    )
    return (before, after) if np.isfinite(before) and np.isfinite(after) else None


def _unproven(report: RepairReport, *, labelled: bool) -> str:
    """Why a repair whose R before and after were not compared is no PASS."""
    if report.method == UNDER_NOISE:
        return f": the noise itself calls for no repair ({report.method_reason})."
    if not report.judged_on:
        return ": nothing was run, since there was no data; check with `vsfix verify` or --eval-data."
    shifts = _shifts(report)
    if shifts is not None and shifts[1] > shifts[0]:
        return ": the stored variances are farther from the real ones than before."
    if labelled:
        return ": the statistics agree with the data, and the labels do not tell the files apart."
    return (
        ": the statistics agree with the data; whether the network computes what it was trained to is unknown; check "
        "with --eval-data."
    )


def _precision(report: RepairReport) -> str:
    """The part of the verdict on the precision that was asked for."""
    cast = report.precision
    if cast is None:
        return ""
    counts = {name: "1 layer" if count == 1 else f"{count} layers" for name, count in cast.layers.items() if count}
    shares = " and ".join(f"{count} in {name}" for name, count in counts.items())
    if not cast.judge:
        return f"; {shares}, not compared"
    told = f"; {shares}, " + (
        "the same bits as before" if cast.snr_db is None else f"{cast.snr_db:.1f} dB against before"
    )
    if cast.scores is not None:
        told += f" with {cast.scores.arrow}"
    if cast.put_back is None:
        return told
    return f"{told}, {len(cast.put_back.names)} of {cast.put_back.layers} layers put back to float32"
