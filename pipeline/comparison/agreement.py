"""How alike two networks are on samples without labels: a number that says nothing of which is right.

decisions    classes, probabilities and whole numbers: the share of decisions that are the same
values       1 - |q - f|^2 / |f|^2 over all samples: the power of the error over that of the signal; 1 where equal
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import UncomparableError
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.noise_average.divergence import OutputKind, recognise_outputs

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


def compared_outputs(
    graph: gs.Graph, outputs: Mapping[str, Array], told: Mapping[str, str]
) -> dict[str, OutputKind | None]:
    """How the outputs that are compared are read: those of floats, else whole numbers, as those of ArgMax (None).

    Args:
        graph: the model.
        outputs: of some samples, by name.
        told: the meaning of outputs, by name, where a person says it.

    Raises:
        UncomparableError: an output that is not finite, or none that can be compared.
        InputError: a meaning of an output that is not there.
    """
    kinds: dict[str, OutputKind | None] = dict(recognise_outputs(graph, outputs, told))
    found = kinds or {name: None for name, array in outputs.items() if array.dtype.kind in "iub"}
    if not found:
        raise UncomparableError("the model has no output of numbers that holds the samples, so nothing can be compared")
    return found


def measure_of(kind: OutputKind | None) -> str:
    """The measure for an output."""
    return POWER if kind is not None and kind.meaning.is_squared else DECISIONS


def output_agreement(kind: OutputKind | None, right: Array, found: Array) -> float:
    """How far an output agrees with another, as a runtime gives both; see `agreement`."""
    if kind is None:
        return float(np.mean(right == found)) if right.shape == found.shape else 0.0
    return agreement(kind, kind.probabilities(right), kind.probabilities(found))


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
