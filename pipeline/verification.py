"""Two models, or two runtimes, on the same inputs: the numbers, the decisions, and whether both pass.

What was measured and what was demanded are kept apart: the comparisons know no threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.inference import Array, Runner

from .calibration import Samples
from .metrics import Decisions, TensorComparison, compare_decisions, compare_tensors

Status = Literal["PASS", "FAIL"]


@dataclass(frozen=True)
class Tolerance:
    """What a candidate must reach.

    Attributes:
        min_snr_db: signal to noise of every output, in dB.
        min_agreement: share of samples with the same top-1 decision, in [0, 1].

    Raises:
        InputError: a value outside its range.
    """

    min_snr_db: float = 80.0
    min_agreement: float = 0.999

    def __post_init__(self) -> None:
        if not np.isfinite(self.min_snr_db):
            raise InputError(f"--min-snr {self.min_snr_db}: must be a number of dB")
        if not 0 <= self.min_agreement <= 1:
            raise InputError(f"--min-agreement {self.min_agreement}: must lie in [0, 1]")


@dataclass(frozen=True)
class CandidateResult:
    """One candidate against the reference.

    Attributes:
        candidate: what ran.
        status: PASS or FAIL.
        reasons: one sentence for each threshold that was missed.
        outputs: the comparison of each output, by the candidate's name for it.
        decisions: of the first output, where it holds logits (N, classes) and the inputs are no random numbers.
    """

    candidate: str
    status: Status
    reasons: tuple[str, ...]
    outputs: Mapping[str, TensorComparison]
    decisions: Decisions | None


@dataclass(frozen=True)
class Verification:
    """All candidates against one reference.

    Attributes:
        reference: what ran.
        data: where the inputs are from.
        samples: how many.
        random: whether the inputs are random numbers, which say nothing about accuracy.
        tolerance: what was demanded.
        results: one for each candidate.
    """

    reference: str
    data: str
    samples: int
    random: bool
    tolerance: Tolerance
    results: tuple[CandidateResult, ...]

    @property
    def status(self) -> Status:
        """PASS where every candidate passes."""
        return "PASS" if all(result.status == "PASS" for result in self.results) else "FAIL"


def verify(
    reference: Runner,
    candidates: Iterable[Runner],
    samples: Samples,
    *,
    tolerance: Tolerance | None = None,
    batch_size: int = 256,
    random: bool = False,
) -> Verification:
    """Runs every model over all samples and compares the outputs of the whole set.

    Args:
        reference: what is right.
        candidates: what is judged; taken one after the other, so a generator may open and close them.
        samples: the inputs, which every model takes by the same names.
        tolerance: what a candidate must reach; the defaults where not given.
        batch_size: samples per run; the result does not depend on it.
        random: the inputs are random numbers: no decisions are compared.

    Raises:
        DataError: inputs that a model does not take, outputs that can't be compared, or a reference that is not finite.
    """
    tolerance = tolerance or Tolerance()
    expected = pooled_outputs(reference, samples, batch_size)
    labels = None if random else samples.labels
    results = tuple(
        _judge(
            candidate.name,
            _pair(expected, pooled_outputs(candidate, samples, batch_size), candidate.name),
            tolerance,
            labels,
            decide=not random,
        )
        for candidate in candidates
    )
    return Verification(reference.name, samples.name, len(samples), random, tolerance, results)


def pooled_outputs(runner: Runner, samples: Samples, batch_size: int) -> dict[str, Array]:
    """Every output over all samples, shape (N, ...).

    Raises:
        DataError: see `Runner.run`; also an output without one row for each sample.
    """
    parts = [runner.run(batch) for batch in samples.batches(batch_size)]
    pooled = {}
    for name in parts[0]:
        rows = [np.atleast_1d(part[name]) for part in parts]
        if len({array.shape[1:] for array in rows}) > 1 or sum(map(len, rows)) != len(samples):
            raise DataError(
                f"{runner.name}: output '{name}' has the shape {rows[0].shape} for {min(batch_size, len(samples))} "
                "samples; one row for each sample is needed"
            )
        pooled[name] = np.concatenate(rows)
    return pooled


def _pair(expected: Mapping[str, Array], found: Mapping[str, Array], candidate: str) -> dict[str, tuple[Array, Array]]:
    """Reference and candidate for each output: by name where the names are the same, else by position."""
    if len(expected) != len(found):
        raise DataError(
            f"{candidate}: has the outputs {', '.join(found)}, the reference {', '.join(expected)}; give two models "
            "with the same outputs"
        )
    if set(expected) == set(found):
        return {name: (expected[name], found[name]) for name in found}
    return {name: (left, found[name]) for name, left in zip(found, expected.values(), strict=True)}


def _judge(
    candidate: str,
    pairs: Mapping[str, tuple[Array, Array]],
    tolerance: Tolerance,
    labels: Array | None,
    *,
    decide: bool,
) -> CandidateResult:
    """Compares one candidate and holds it against the tolerance."""
    outputs = {name: compare_tensors(expected, found) for name, (expected, found) in pairs.items()}
    first, second = next(iter(pairs.values()))
    decisions: Decisions | None = None
    if decide and first.ndim == 2 and first.shape[1] > 1:
        decisions = compare_decisions(first, second, labels)
    reasons = _reasons(outputs, decisions, tolerance)
    return CandidateResult(candidate, "FAIL" if reasons else "PASS", tuple(reasons), outputs, decisions)


def _reasons(
    outputs: Mapping[str, TensorComparison], decisions: Decisions | None, tolerance: Tolerance
) -> Sequence[str]:
    """Why a candidate fails; empty where it passes."""
    reasons = []
    for name, comparison in outputs.items():
        if not comparison.finite:
            reasons.append(f"output '{name}' holds {comparison.nan_count} NaN and {comparison.inf_count} infinities")
        # Written so that NaN fails too.
        elif not comparison.snr_db >= tolerance.min_snr_db:
            reasons.append(f"output '{name}': SNR {comparison.snr_db:.1f} dB, wanted {tolerance.min_snr_db:g} dB")
    if decisions is not None and not decisions.agreement >= tolerance.min_agreement:
        reasons.append(
            f"{decisions.flips} of {decisions.samples} decisions differ: agreement {decisions.agreement:.4%}, wanted "
            f"{tolerance.min_agreement:.4%}"
        )
    return reasons
