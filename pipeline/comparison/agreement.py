"""How alike two networks are on samples without labels: a number that says nothing of which is right.

decisions    classes and probabilities: the share of decisions that are the same
values       1 - |q - f|^2 / |f|^2 over all samples: the power of the error over that of the signal; 1 where equal
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.noise_average.divergence import Meaning, OutputKind

from .tensor_comparison import finite_rows

DECISIONS, POWER = "same decisions", "1 - error power / signal power"


@dataclass(frozen=True)
class Agreement:
    """One output of the file as given, of what is written, and of F, the average of the noisy network.

    Attributes:
        output: its name.
        measure: `DECISIONS` or `POWER`.
        samples: how many it was measured on.
        repaired_given: what is written against the file as given.
        given_average: the file as given against F; None where F is unknown, or no noise reaches the output.
        repaired_average: what is written against F; likewise.
    """

    output: str
    measure: str
    samples: int
    repaired_given: float
    given_average: float | None = None
    repaired_average: float | None = None

    def text(self, value: float | None) -> str:
        """One of the numbers."""
        if value is None:
            return "unknown"
        return f"{100 * value:.2f} %" if self.measure == DECISIONS else f"{value:.4f}"

    @property
    def sentence(self) -> str:
        """All numbers."""
        average = (
            ""
            if self.given_average is None
            else f"; with the noise-averaged network {self.text(self.given_average)} as given, "
            f"{self.text(self.repaired_average)} repaired"
        )
        return (
            f"on {self.samples} samples without labels '{self.output}' of the repaired file agrees with that of the "
            f"file as given by {self.text(self.repaired_given)} ({self.measure}){average}"
        )


def measure_of(kind: OutputKind) -> str:
    """The measure for an output."""
    return DECISIONS if kind.meaning in (Meaning.CLASSES, Meaning.PROBABILITIES) else POWER


def agreement(kind: OutputKind, right: Float64Array, found: Float64Array) -> float:
    """How far an output agrees with another, 1 at most.

    Args:
        kind: how it is read.
        right: in the form of `kind.probabilities`, shape (N, ...).
        found: in the same form; a sample that is not finite agrees in no decision.
    """
    decided, other = kind.decisions(right), kind.decisions(found)
    if decided is None or other is None:
        signal, error = float((right**2).sum()), float(((found - right) ** 2).sum())
        if not np.isfinite(error):
            return -np.inf
        return 1 - error / signal if signal > 0 else (1.0 if error == 0 else -np.inf)
    same = (decided == other).reshape(len(right), -1).mean(axis=1)
    return float(np.where(finite_rows(found), same, 0.0).mean())
