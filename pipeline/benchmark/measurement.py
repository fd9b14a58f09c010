"""The outputs of a row over the whole labelled set, and how they compare with those of another row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.ir.runtime import Array
from vsfix.pipeline.comparison.decisions import compare_decisions
from vsfix.pipeline.comparison.error_budget import (
    BudgetStep,
    StageOutputs,
    error_budget,
    holds_logits,
    noise_floor,
    pair_outputs,
)
from vsfix.pipeline.comparison.tensor_comparison import as_float64, compare_tensors, finite_rows
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.repair.repair_config import QUANTIZED
from vsfix.pipeline.verification.model_description import ANOTHER_MODEL, name_step
from vsfix.pipeline.verification.verification import pooled_outputs

from .deployment import Deployed, Deployments
from .result import Comparison
from .variant import Variant

_ONE_LOGIT = ", for two classes too: export one logit z as the two logits (0, z)"


@dataclass(frozen=True, eq=False)
class Measured:
    """A row that has run.

    Attributes:
        variant: the row.
        deployed: the file that ran.
        runner: what ran it.
        outputs: each over all samples, shape (N, ...); the first holds logits, (N, classes).
        floor: the row against itself, run twice.
    """

    variant: Variant
    deployed: Deployed
    runner: str
    outputs: Mapping[str, Array]
    floor: BudgetStep

    @property
    def logits(self) -> Array:
        """The first output, shape (N, classes)."""
        return next(iter(self.outputs.values()))

    @property
    def is_finite(self) -> bool:
        """Whether its logits hold neither NaN nor infinity."""
        return bool(finite_rows(as_float64(self.logits, "the output")).all())

    def classes(self) -> Array:
        """The top-1 class of each sample, shape (N,); -1 where the logits are not finite."""
        logits = as_float64(self.logits, "the output")
        return np.where(finite_rows(logits), np.nan_to_num(logits).argmax(axis=1), -1)


def measure_row(deployments: Deployments, variant: Variant, samples: Samples, batch_size: int) -> Measured:
    """Runs a row over all samples.

    Raises:
        InputError: the first output holds no logits.
        VsfixError: the row can't be made, opened or run here.
    """
    deployed = deployments.make(variant)
    with deployments.open(variant) as runner:
        outputs = pooled_outputs(runner, samples, batch_size)
        first = next(iter(outputs.values()))
        if not holds_logits(first):
            raise InputError(
                f"{variant.model.path}: its first output has the shape {first.shape} and type {first.dtype}; a "
                "benchmark needs logits (N, classes)" + (_ONE_LOGIT if first.size == len(samples) else "") + "; `vsfix "
                "verify` compares any tensors"
            )
        stage = StageOutputs("", variant.label, outputs)
        floor = noise_floor(runner, stage, next(samples.batches(batch_size)))
        return Measured(variant, deployed, runner.name, outputs, floor)


def require_comparable(row: Measured, reference: Measured) -> None:
    """Refuses a row that the reference can't be compared with.

    Raises:
        InputError: other classes, or another output of another shape.
        DataError: another number of outputs.
    """
    if row.logits.shape != reference.logits.shape:
        raise InputError(f"{row.variant.model.path}: has other classes than {reference.variant.model.path}")
    for name, (expected, found) in pair_outputs(reference.outputs, row.outputs, str(row.variant.model.path)).items():
        if expected.shape != found.shape:
            raise InputError(
                f"{row.variant.model.path}: its output {name} has the shape {found.shape}, that of "
                f"{reference.variant.model.path} {expected.shape}; give two models with the same outputs"
            )


def compare_rows(row: Measured, baseline: Measured, labels: Array) -> Comparison | None:
    """A row against another; None where the other is not finite, so that nothing can be compared with it.

    Raises:
        DataError: outputs of other shapes.
    """
    if not baseline.is_finite:
        return None
    pairs = pair_outputs(baseline.outputs, row.outputs, row.variant.label)
    return Comparison(
        baseline=baseline.variant.label,
        outputs={name: compare_tensors(*pair) for name, pair in pairs.items()},
        decisions=compare_decisions(baseline.logits, row.logits, labels),
    )


def budget_of(row: Measured, rows: Sequence[Measured], labels: Array) -> tuple[BudgetStep, ...]:
    """The steps that lead from the reference to a row, and the noise floor; the floor alone for the reference.

    Args:
        row: one of `rows`.
        rows: all that have run; the first is the reference.
        labels: the right class of each sample, shape (N,).
    """
    chain = _chain(row, rows)
    names = ["", *(_name_step(before.variant, after.variant) for before, after in pairwise(chain))]
    stages = [StageOutputs(step, found.variant.label, found.outputs) for step, found in zip(names, chain, strict=True)]
    return (*error_budget(stages, labels, decide=True), row.floor)


def before_repair(row: Measured, rows: Sequence[Measured]) -> Measured | None:
    """The row that shows the model of a row as it was before its repair: the earliest one that it can have come from.

    None where there is none before it, where its model is not repaired, and where it is not its model's first row.
    """
    if not row.variant.model.repaired or not _starts_model(row, rows):
        return None
    found = None
    for before, after in reversed(list(pairwise(_chain(row, rows)))):
        if _name_step(before.variant, after.variant) == ANOTHER_MODEL:
            break
        if not before.variant.model.repaired:
            found = before
    return found


def _chain(row: Measured, rows: Sequence[Measured]) -> list[Measured]:
    """The rows between the reference and a row, both included.

    Before a row stands that of its precision on the model's first backend, before that the first row of the
    model, before that the first row of the nearest earlier model that it can have come from.
    """
    chain = [row]
    while chain[0] is not rows[0]:
        chain.insert(0, _predecessor(chain[0], rows))
    return chain


def _predecessor(row: Measured, rows: Sequence[Measured]) -> Measured:
    """The row that comes before one in its chain."""
    own = [found for found in rows if found.variant.model == row.variant.model]
    if row is not own[0]:
        first = own[0].variant.backend
        same = [f for f in own if f.variant.precision == row.variant.precision and f.variant.backend == first]
        return same[0] if same and same[0] is not row else own[0]
    earlier = [found for found in rows[: rows.index(row)] if _starts_model(found, rows)]
    for found in reversed(earlier):
        if name_step(found.variant.model, row.variant.model) != ANOTHER_MODEL:
            return found
    return rows[0]


def _starts_model(row: Measured, rows: Sequence[Measured]) -> bool:
    """Whether a row is the first of its model."""
    return next(found for found in rows if found.variant.model == row.variant.model) is row


def _name_step(before: Variant, after: Variant) -> str:
    """The step from one row to the next."""
    if before.model != after.model:
        return name_step(before.model, after.model)
    if before.precision == after.precision:
        return "runtime"
    cast = "quantisation" if after.precision in QUANTIZED else "cast"
    return cast if before.backend == after.backend else f"{cast} and runtime"
