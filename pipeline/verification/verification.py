"""Two models, or two runtimes, on the same inputs: the numbers, the decisions, and whether both pass.

What was measured and what was demanded are kept apart: the comparisons know no threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.ir.runtime import Array, Runner
from vsfix.graph_passes.noise_average.divergence import are_directions
from vsfix.graph_passes.statistics.batches import Batch, take_rows
from vsfix.pipeline.comparison.decisions import Decisions, compare_decisions
from vsfix.pipeline.comparison.error_budget import (
    BudgetStep,
    StageOutputs,
    error_budget,
    holds_logits,
    noise_floor,
    pair_outputs,
)
from vsfix.pipeline.comparison.layer_search import LayerSearch
from vsfix.pipeline.comparison.tensor_comparison import TensorComparison, compare_tensors
from vsfix.pipeline.comparison.tolerance import Tolerance
from vsfix.pipeline.data.batch_runs import run_batches
from vsfix.pipeline.data.samples import Samples

Status = Literal["PASS", "FAIL"]
SEARCHED_SAMPLES = 4  # with the largest errors: what is wrong there is wrong in a layer


@dataclass(frozen=True)
class CandidateResult:
    """One candidate against the reference.

    Attributes:
        candidate: what ran.
        status: PASS or FAIL.
        reasons: one sentence for each threshold that was missed.
        outputs: the comparison of each output, by the candidate's name for it.
        decisions: of the first output, where it holds logits (N, classes) and the inputs are no random numbers.
        worst_samples: those with the largest errors, the worst first.
        budget: the steps between reference and candidate; empty where no stages were given.
        layers: where a candidate that fails diverges; None where nothing was searched.
        is_embedding: whether the first output is one, which decides nothing.
    """

    candidate: str
    status: Status
    reasons: tuple[str, ...]
    outputs: Mapping[str, TensorComparison]
    decisions: Decisions | None
    worst_samples: tuple[int, ...]
    budget: tuple[BudgetStep, ...] = ()
    layers: LayerSearch | None = None
    is_embedding: bool = False


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
        hint: what explains a failure before any layer is looked at; empty where nothing does.
    """

    reference: str
    data: str
    samples: int
    random: bool
    tolerance: Tolerance
    results: tuple[CandidateResult, ...]
    hint: str = ""

    @property
    def status(self) -> Status:
        """PASS where every candidate passes."""
        return "PASS" if all(result.status == "PASS" for result in self.results) else "FAIL"


@dataclass(frozen=True)
class Stage:
    """A model that runs.

    Attributes:
        step: what leads to it from the one in front: export, repair, cast, quantisation, runtime.
        name: the model and what runs it, for an error budget.
        runner: opened.
    """

    step: str
    name: str
    runner: Runner


def verify(
    reference: Runner,
    candidates: Iterable[Stage],
    samples: Samples,
    *,
    tolerance: Tolerance | None = None,
    batch_size: int = 256,
    random: bool = False,
    stages: Iterable[Stage] = (),
    search: Callable[[int, Batch], LayerSearch] | None = None,
) -> Verification:
    """Runs every model over all samples and compares the outputs of the whole set.

    Args:
        reference: what is right.
        candidates: what is judged; taken one after the other, so a generator may open and close them.
        samples: the inputs, which every model takes by the same names.
        tolerance: what a candidate must reach; that of float32 where not given.
        batch_size: samples per run; the result does not depend on it.
        random: the inputs are random numbers: no decisions are compared.
        stages: what lies between reference and candidates, in its order, for an error budget; taken as `candidates`.
        search: finds the layers in which the candidate of this index diverges on some samples; asked where one fails.

    Raises:
        DataError: inputs that a model does not take, outputs that can't be compared, or a reference that is not finite.
    """
    tolerance = tolerance or Tolerance()
    labels = None if random else samples.labels
    first = StageOutputs("", reference.name, pooled_outputs(reference, samples, batch_size))
    chain = [first, *(_run(stage, samples, batch_size) for stage in stages)]
    results = []
    for index, candidate in enumerate(candidates):
        last = _run(candidate, samples, batch_size)
        result = _judge(candidate.runner.name, last.outputs, first.outputs, tolerance, labels, decide=not random)
        if len(chain) > 1:
            again = noise_floor(candidate.runner, last, next(samples.batches(batch_size)))
            result = replace(result, budget=(*error_budget([*chain, last], labels, decide=not random), again))
        if search is not None and result.status == "FAIL":
            rows = np.array(result.worst_samples, dtype=np.intp)
            worst = dict(take_rows(samples.inputs, rows))
            result = replace(result, layers=search(index, worst))
        results.append(result)
    return Verification(reference.name, samples.name, len(samples), random, tolerance, tuple(results))


def pooled_outputs(runner: Runner, samples: Samples, batch_size: int) -> dict[str, Array]:
    """Every output over all samples, shape (N, ...).

    Raises:
        DataError: see `Runner.run`; also an output without one row for each sample.
    """
    parts = [outputs for _, outputs in run_batches(runner, samples, batch_size)]
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


def _run(stage: Stage, samples: Samples, batch_size: int) -> StageOutputs:
    """The outputs of a stage."""
    return StageOutputs(stage.step, stage.name, pooled_outputs(stage.runner, samples, batch_size))


def _judge(
    name: str,
    found: Mapping[str, Array],
    expected: Mapping[str, Array],
    tolerance: Tolerance,
    labels: Array | None,
    *,
    decide: bool,
) -> CandidateResult:
    """Compares one candidate and holds it against the tolerance."""
    pairs = pair_outputs(expected, found, name)
    outputs = {name: compare_tensors(*pair) for name, pair in pairs.items()}
    first = next(iter(pairs.values()))
    decisions = compare_decisions(*first, labels) if decide and holds_logits(first[0]) else None
    reasons = missed_tolerances(outputs, decisions, tolerance)
    return CandidateResult(
        name,
        "FAIL" if reasons else "PASS",
        tuple(reasons),
        outputs,
        decisions,
        worst_samples(pairs),
        is_embedding=are_directions(first[0]),
    )


def worst_samples(pairs: Mapping[str, tuple[Array, Array]]) -> tuple[int, ...]:
    """The few samples with the largest errors over the outputs, each output by its own magnitude; the worst first.

    Args:
        pairs: reference and candidate of each output, over all samples.
    """
    errors = np.zeros(len(next(iter(pairs.values()))[0]))
    for expected, found in pairs.values():
        with np.errstate(all="ignore"):
            difference = np.abs(found.astype(np.float64) - expected).reshape(len(errors), -1).max(axis=1, initial=0)
        scale = float(np.abs(expected).max(initial=0)) or 1.0
        errors = np.maximum(errors, np.where(np.isnan(difference), np.inf, difference / scale))
    return tuple(int(row) for row in np.argsort(-errors, kind="stable")[:SEARCHED_SAMPLES])


def missed_tolerances(
    outputs: Mapping[str, TensorComparison], decisions: Decisions | None, tolerance: Tolerance
) -> Sequence[str]:
    """Why a candidate fails, one sentence for each threshold; empty where it passes."""
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
    if decisions is not None and decisions.task is not None:
        before, after = 100 * decisions.task.reference.value, 100 * decisions.task.output.value
        if before - after > tolerance.max_accuracy_loss + 1e-9:
            reasons.append(
                f"top-1 {after:.2f} %, {before - after:.2f} percentage points below the reference, allowed are "
                f"{tolerance.max_accuracy_loss:g}"
            )
    return reasons
