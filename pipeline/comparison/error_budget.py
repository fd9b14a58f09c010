"""Where the difference between a reference and a candidate comes from: one row for each step between them.

Each stage (the checkpoint, its export, the repaired file, the cast one, the engine) is compared with the stage in front
of it. The last row is the floor under all of them: the candidate against itself, run twice. NaN and infinities count in
the step in which they appear or go, and are no difference between two stages that both have them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.ir.runtime import Array, Runner
from vsfix.graph_passes.noise_average.divergence import are_directions
from vsfix.graph_passes.statistics.batches import Batch

from .decisions import compare_decisions
from .tensor_comparison import as_float64, comparable, compare_tensors, finite_rows

NOISE_FLOOR = "noise floor"


@dataclass(frozen=True, eq=False)
class StageOutputs:
    """The outputs of one stage.

    Attributes:
        step: what leads to it from the stage in front: export, repair, cast, quantisation, runtime.
        name: what ran.
        outputs: each over all samples, shape (N, ...).
    """

    step: str
    name: str
    outputs: Mapping[str, Array]


@dataclass(frozen=True)
class BudgetStep:
    """The cost of one step.

    Attributes:
        step: its name.
        source: what ran before it.
        target: what ran at its end.
        snr_db: the smallest of the outputs', in dB.
        max_rel: the largest of the outputs': error over the largest magnitude.
        agreement: share of equal decisions; None where the output decides nothing.
        accuracy: the metric after the step, of top-1 a share in [0, 1]; None without labels.
    """

    step: str
    source: str
    target: str
    snr_db: float
    max_rel: float
    agreement: float | None
    accuracy: float | None


def error_budget(stages: Sequence[StageOutputs], labels: Array | None, *, decide: bool) -> tuple[BudgetStep, ...]:
    """One row for each stage but the first.

    Args:
        stages: in their order.
        labels: the right class of each sample, shape (N,).
        decide: whether decisions mean anything on these samples.

    Raises:
        DataError: stages whose outputs can't be compared.
    """
    return tuple(_step(before, after, labels, decide=decide) for before, after in pairwise(stages))


def pair_outputs(
    expected: Mapping[str, Array], found: Mapping[str, Array], candidate: str
) -> dict[str, tuple[Array, Array]]:
    """Reference and candidate for each output: by name where the names are the same, else by position.

    Raises:
        DataError: they differ in number.
    """
    if len(expected) != len(found):
        raise DataError(
            f"{candidate}: has the outputs {', '.join(found)}, the reference {', '.join(expected)}; give two models "
            "with the same outputs"
        )
    if set(expected) == set(found):
        return {name: (expected[name], found[name]) for name in found}
    return {name: (left, found[name]) for name, left in zip(found, expected.values(), strict=True)}


def noise_floor(runner: Runner, once: StageOutputs, batch: Batch) -> BudgetStep:
    """A batch once more, against what the runner gave before.

    Args:
        runner: what gave it.
        once: its outputs over all samples; the first of them are those of the batch.
        batch: the first samples.
    """
    repeated = {name: np.atleast_1d(array) for name, array in runner.run(batch).items()}
    before = {name: once.outputs[name][: len(array)] for name, array in repeated.items()}
    chain = [StageOutputs("", once.name, before), StageOutputs(NOISE_FLOOR, once.name, repeated)]
    return error_budget(chain, None, decide=False)[0]


def holds_logits(output: Array) -> bool:
    """Whether an output can be read as one decision for each sample; whole numbers are decisions themselves.

    An embedding decides nothing: which of its values is the largest says nothing of a class.
    """
    is_row = output.ndim == 2 and output.shape[1] > 1 and output.dtype.kind not in "iub"
    return is_row and not are_directions(output)


def _step(before: StageOutputs, after: StageOutputs, labels: Array | None, *, decide: bool) -> BudgetStep:
    """One stage against the one before it."""
    pairs = list(pair_outputs(before.outputs, after.outputs, after.name).values())
    comparisons = [_compare(*comparable(expected, found)) for expected, found in pairs]
    decide = decide and holds_logits(pairs[0][0]) and _is_finite(pairs[0][0])
    decisions = compare_decisions(*pairs[0], labels) if decide else None
    return BudgetStep(
        step=after.step,
        source=before.name,
        target=after.name,
        snr_db=min(snr_db for snr_db, _ in comparisons),
        max_rel=max(max_rel for _, max_rel in comparisons),
        agreement=None if decisions is None else decisions.agreement,
        accuracy=None if decisions is None or decisions.task is None else decisions.task.output.value,
    )


def _compare(expected: Array, found: Array) -> tuple[float, float]:
    """SNR and largest relative error; the worst there is where the stage in front is not finite and this one is."""
    if not _is_finite(expected):
        return -math.inf, math.inf
    comparison = compare_tensors(expected, found)
    return comparison.snr_db, comparison.max_rel


def _is_finite(output: Array) -> bool:
    """Whether an output holds neither NaN nor infinity."""
    return bool(finite_rows(as_float64(output, "the output")).all())
