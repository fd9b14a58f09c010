"""The verdict of an inspection: by R where noise is known and something ran, else by the stored variances."""

from __future__ import annotations

import math

from vsfix.graph_passes.noise_average.severity import Severity
from vsfix.graph_passes.statistics.jackknife import MIN_GROUPS

from .batch_norm_row import BatchNormRow
from .fault import RE_ESTIMATED, FaultKind
from .inspection import Inspection

# A stored variance that is off by less moves no decision that could be measured; measured on 500 images, the variance
# of a healthy BatchNorm is off by a few percent.
SHIFTED = 1.1


def shifted_rows(rows: tuple[BatchNormRow, ...]) -> tuple[BatchNormRow, ...]:
    """The BatchNorms that noise reaches and whose stored variance is off by a tenth or more, the worst first."""
    off = [row for row in rows if row.noise and (row.known_variance_ratio or 0.0) >= SHIFTED]
    return tuple(sorted(off, key=lambda row: -(row.known_variance_ratio or 0.0)))


def is_within_chance(variance_ratio: float, samples: int) -> bool:
    """Whether a BatchNorm that stores the right variance may show this variance ratio on so few samples.

    The logarithm of the variance of n independent normal samples scatters by sqrt(trigamma(x)), x = (n - 1) / 2, which
    is sqrt(2 / n) where n is large and far more where it is small; half as much again is granted for heavier tails.
    With 500 samples that is `SHIFTED`. So few that no repair rests on them may show anything; without any the ratio
    is a prediction, and no chance.
    """
    if samples < MIN_GROUPS:
        return samples > 0
    x = (samples - 1) / 2
    trigamma = 1 / x + 1 / (2 * x**2) + 1 / (6 * x**3)  # the beginning of its series
    return variance_ratio < math.exp(1.5 * math.sqrt(trigamma))


def judge_inspection(inspection: Inspection) -> tuple[str, str]:
    """The status word and one sentence with the numbers: WARN where there is something to repair or to know.

    FAIL where the weights are such that no repair makes them deployable.
    """
    if inspection.defect:
        return "FAIL", f"The weights can't be deployed, repaired or not: {inspection.defect}."
    if inspection.stored:
        return "WARN", wrong_statistics(inspection)
    if inspection.fault is not None:
        return "WARN", f"{inspection.fault.sentence[:1].upper()}{inspection.fault.sentence[1:]}."
    if inspection.question:
        return "WARN", f"Not clear: {inspection.question}."
    if inspection.severity is not None:
        return _judge_severity(inspection)
    total = len(inspection.rows)
    reached = sum(bool(row.noise) for row in inspection.rows)
    shifted = shifted_rows(inspection.rows)
    basis = f"measured on {inspection.samples} samples" if inspection.samples else "predicted from what is stored"
    if shifted:
        worst, variance_ratio = shifted[0], shifted[0].known_variance_ratio or 0.0
        if is_within_chance(variance_ratio, inspection.samples):
            return "WARN", (
                f"Not clear: noise reaches {reached} of {total} BatchNorms, and the worst, '{worst.name}', stores a "
                f"variance that is off by a factor of {variance_ratio:.2f}, which a healthy one may show on "
                f"{inspection.samples} samples; give more (--samples 500)."
            )
        return "WARN", (
            f"Damaged: noise reaches {reached} of {total} BatchNorms, and {len(shifted)} store a variance that is off "
            f"by a tenth or more, the worst, '{worst.name}', by a factor of {variance_ratio:.2f} ({basis}); "
            "vsfix optimize repairs it."
        )
    status = "WARN" if inspection.warnings else "PASS"
    if not reached and inspection.noise_sources:
        return "WARN", "Not clear: the file marks noise, and how far it moves the outputs only data tells (--data)."
    if not reached:
        return status, f"Nothing to repair: no noise that the file shows reaches any of its {total} BatchNorms."
    known = [row.known_variance_ratio for row in inspection.rows if row.noise and row.known_variance_ratio is not None]
    if not known:
        return (
            "WARN",
            f"Noise reaches {reached} of {total} BatchNorms; how far it shifts them only data tells (--data).",
        )
    if len(known) < reached:
        return "WARN", (
            f"Noise reaches {reached} of {total} BatchNorms: {len(known)} of them store a variance that is off by a "
            f"factor of {max(known):.2f} at most ({basis}), and how far it shifts the others is not known"
            + ("." if inspection.samples else "; only data tells (--data).")
        )
    return status, (
        f"Nothing to repair: noise reaches {reached} of {total} BatchNorms, and their stored variances are off by a "
        f"factor of {max(known):.2f} at most ({basis})."
    )


def wrong_statistics(inspection: Inspection) -> str:
    """That stored statistics are not true under the noise, in one sentence with the first BatchNorm."""
    first, count = inspection.stored[0], len(inspection.stored)
    if inspection.fault is not None and inspection.fault.kind is FaultKind.INPUT:
        return f"The noise is not the only fault: {inspection.fault.sentence}."
    what = "" if inspection.fault is None else f" Most likely {inspection.fault.description}."
    who = f"BatchNorm '{first.name}' stores" if count == 1 else f"{count} BatchNorms store"
    where = "" if count == 1 else f"'{first.name}' the first, "
    return (
        f"The noise is not the only fault: {who} other statistics than the network with its noise on shows on this "
        f"data ({where}variance off by a factor of {first.ratio:.2f}, mean by {first.offset:.2f} deviations). If it is "
        f"the data of the training, preprocessed the same way, vsfix optimize re-estimates them from {RE_ESTIMATED} "
        f"samples or more first.{what}"
    )


def variances_beside(inspection: Inspection) -> str:
    """The note on stored variances that are off although the network is healthy; empty where none is."""
    off = shifted_rows(inspection.rows)
    if not off:
        return ""
    return (
        f" {len(off)} of {len(inspection.rows)} stored variances are off by a tenth or more with the noise off (the "
        f"worst, '{off[0].name}', by a factor of {off[0].known_variance_ratio:.2f}), and that moves the outputs no "
        "farther."
    )


def _judge_severity(inspection: Inspection) -> tuple[str, str]:
    """The verdict where R is known and what is stored is true under the noise."""
    assert inspection.severity is not None
    said = severity_sentence(inspection.severity)
    if inspection.severity.is_open:
        return "WARN", f"Not clear: {said}"
    if inspection.severity.is_healthy:
        status = "WARN" if inspection.warnings else "PASS"
        return status, f"Nothing to repair: {said}{variances_beside(inspection)}"
    return "WARN", f"Damaged: {said} The remedy is vsfix optimize."


def severity_sentence(severity: Severity) -> str:
    """R with its interval, and what it means."""
    number = f"R = {severity.ratio:.2f} ({severity.low:.2f} to {severity.high:.2f}, {severity.samples} samples)"
    decisions = "" if severity.changed is None else f"; {100 * severity.changed:.1f} % of its decisions differ"
    if severity.is_healthy and not severity.is_open:
        return (
            f"{number}: deployed without its noise, the network answers as it was trained to; what is left is "
            f"less than {severity.bound} of what a single draw of its training noise does{decisions}."
        )
    times = f"{severity.ratio:.1f} times as far" if severity.ratio >= 1 else f"{severity.ratio:.0%} as far"
    return (
        f"{number}: deployed without its noise, the network's answers are {times} from what it was trained to answer "
        f"as a single draw of its training noise throws them{decisions}."
    )
