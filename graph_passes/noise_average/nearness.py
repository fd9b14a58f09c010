"""How much nearer to F a candidate for deployment is than the network as given, and whether that is chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vsfix.graph_passes.ir.runtime import Array

from .severity import Reference, mean_interval, sign_flip_p_value

CHANCE = 0.025  # one-sided
LEAST_JUDGES = 6  # held-out samples, one in three; fewer can't tell two candidates apart
AS_TRAINED, MATCH, REFINE = "as trained", "match", "match+refine"


@dataclass(frozen=True)
class Candidate:
    """One candidate for deployment.

    Attributes:
        name: `as trained`, `match`, `match+refine`, or a method of re-estimation.
        severity: its R on the samples that judge.
        difference: its R less that of the network as given, on the same samples.
        low: lower end of the 95 % interval of that.
        high: upper end.
        p_value: of the hypothesis that it is not nearer to F than the network as given: the share of random changes of
            sign of the samples' differences that make their mean as low.
        changed: see `Severity.changed`.
    """

    name: str
    severity: float
    difference: float
    low: float
    high: float
    p_value: float
    changed: float | None

    @property
    def is_nearer(self) -> bool:
        """Whether it is nearer to F than the network as given, by more than chance."""
        return self.difference < 0 and self.p_value < CHANCE


def judge_candidate(
    name: str, outputs: Mapping[str, Array], reference: Reference, given: Mapping[str, Array], judges: Array
) -> Candidate:
    """Judges one candidate.

    Args:
        name: of the candidate.
        outputs: its own over all samples, by name.
        reference: the outputs of F.
        given: those of the network as given.
        judges: the samples that count, shape (N,) of bools.
    """
    noise = float(reference.noise_distances()[judges].mean())
    apart = reference.distances(outputs)[judges] / noise
    difference = apart - reference.distances(given)[judges] / noise
    low, high = mean_interval(difference)
    return Candidate(
        name=name,
        severity=max(float(apart.mean()), 0.0),
        difference=float(difference.mean()),
        low=low,
        high=high,
        p_value=sign_flip_p_value(difference),
        changed=reference.rows(judges).changed(rows_of(outputs, judges)),
    )


def rows_of(outputs: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    """The outputs of some samples, shape (N,) of bools; the first axis may hold several rows for each."""
    return {
        name: array.reshape(len(rows), len(array) // len(rows), *array.shape[1:])[rows].reshape(-1, *array.shape[1:])
        for name, array in outputs.items()
    }
