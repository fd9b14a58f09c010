"""What an inspection comes to: whether the noise of training shifts the stored variances, and by how much."""

from __future__ import annotations

import math

from vsfix.graph_passes.jackknife import MIN_GROUPS

from .inspection import BatchNormRow, Inspection

# A stored variance that is off by less moves no decision that could be measured; measured on 500 images, the variance
# of a healthy BatchNorm is off by a few percent.
SHIFTED = 1.1


def shifted_rows(rows: tuple[BatchNormRow, ...]) -> tuple[BatchNormRow, ...]:
    """The BatchNorms that noise reaches and whose stored variance is off by a tenth or more, the worst first."""
    off = [row for row in rows if row.noise and (row.known_mismatch or 0.0) >= SHIFTED]
    return tuple(sorted(off, key=lambda row: -(row.known_mismatch or 0.0)))


def is_within_chance(mismatch: float, samples: int) -> bool:
    """Whether a BatchNorm that stores the right variance may show this mismatch on so few samples.

    The logarithm of the variance of n independent normal samples scatters by sqrt(trigamma(x)), x = (n - 1) / 2, which
    is sqrt(2 / n) where n is large and far more where it is small; half as much again is granted for heavier tails.
    With 500 samples that is `SHIFTED`. So few that no repair rests on them may show anything; without any the mismatch
    is a prediction, and no chance.
    """
    if samples < MIN_GROUPS:
        return samples > 0
    x = (samples - 1) / 2
    trigamma = 1 / x + 1 / (2 * x**2) + 1 / (6 * x**3)  # the beginning of its series
    return mismatch < math.exp(1.5 * math.sqrt(trigamma))


def judge_inspection(inspection: Inspection) -> tuple[str, str]:
    """The status word and one sentence with the numbers: WARN where there is something to repair or to know.

    FAIL where the weights are such that no repair makes them deployable.
    """
    if inspection.defect:
        return "FAIL", f"The weights can't be deployed, repaired or not: {inspection.defect}."
    total = len(inspection.rows)
    reached = sum(bool(row.noise) for row in inspection.rows)
    shifted = shifted_rows(inspection.rows)
    basis = f"measured on {inspection.samples} samples" if inspection.samples else "predicted from what is stored"
    if shifted:
        worst, mismatch = shifted[0], shifted[0].known_mismatch or 0.0
        if is_within_chance(mismatch, inspection.samples):
            return "WARN", (
                f"Not clear: noise reaches {reached} of {total} BatchNorms, and the worst, '{worst.name}', stores a "
                f"variance that is off by a factor of {mismatch:.2f}, which a healthy one may show on "
                f"{inspection.samples} samples; give more (--samples 500)."
            )
        return "WARN", (
            f"Damaged: noise reaches {reached} of {total} BatchNorms, and {len(shifted)} store a variance that is off "
            f"by a tenth or more, the worst, '{worst.name}', by a factor of {mismatch:.2f} ({basis}); "
            "vsfix optimize repairs it."
        )
    status = "WARN" if inspection.warnings else "PASS"
    if not reached:
        return status, f"Nothing to repair: no noise that the file shows reaches any of its {total} BatchNorms."
    known = [row.known_mismatch for row in inspection.rows if row.noise and row.known_mismatch is not None]
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
