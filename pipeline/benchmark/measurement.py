"""The outputs of a row over the whole labelled set, and how they compare with those of another row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.io.model_file import import_graph, read_model
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.noise_average.divergence import OutputKind, recognise_outputs, recognise_values
from vsfix.pipeline.comparison.decisions import Decisions, compare_classes, compare_decisions
from vsfix.pipeline.comparison.error_budget import (
    BudgetStep,
    StageOutputs,
    error_budget,
    noise_floor,
    pair_outputs,
)
from vsfix.pipeline.comparison.judgement import Judge, choose_judge
from vsfix.pipeline.comparison.metric import Function
from vsfix.pipeline.comparison.score_difference import compare_scores, score_of
from vsfix.pipeline.comparison.tensor_comparison import as_float64, compare_tensors, finite_rows
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.repair.repair_config import QUANTIZED
from vsfix.pipeline.verification.model_description import ANOTHER_MODEL, ModelDescription, name_step
from vsfix.pipeline.verification.verification import pooled_outputs

from .deployment import Deployed, Deployments
from .result import Comparison
from .variant import Variant


@dataclass(frozen=True, eq=False)
class Measured:
    """A row that has run.

    Attributes:
        variant: the row.
        deployed: the file that ran.
        runner: what ran it.
        outputs: each over all samples, shape (N, ...).
        floor: the row against itself, run twice.
        scores: of each sample, shape (N,); None without labels.
        decided: the scores of each decision, see `Judge.decision_scores`; None where nothing is decided.
    """

    variant: Variant
    deployed: Deployed
    runner: str
    outputs: Mapping[str, Array]
    floor: BudgetStep
    scores: Float64Array | None = None
    decided: Float64Array | None = None

    @cached_property
    def not_finite(self) -> str | None:
        """The first output that holds NaN or infinity; None where all are finite."""
        bad = (name for name, array in self.outputs.items() if not finite_rows(as_float64(array, name)).all())
        return next(bad, None)


def measure_row(deployments: Deployments, variant: Variant, samples: Samples, batch_size: int) -> Measured:
    """Runs a row over all samples; nothing is judged yet.

    Raises:
        VsfixError: the row can't be made, opened or run here.
    """
    deployed = deployments.make(variant)
    with deployments.open(variant) as runner:
        outputs = pooled_outputs(runner, samples, batch_size)
        stage = StageOutputs("", variant.label, outputs)
        floor = noise_floor(runner, stage, next(samples.batches(batch_size)))
        return Measured(variant, deployed, runner.name, outputs, floor)


def judge_of(
    reference: Measured,
    models: Sequence[ModelDescription],
    samples: Samples,
    wanted: str | Function | None,
    output: str | None,
) -> Judge:
    """The judge of all rows, by the outputs of the reference.

    Args:
        reference: the first row that ran.
        models: the first ONNX file among them says how the outputs are read.
        samples: with labels, or without.
        wanted: the metric; see `choose_metric`.
        output: the name of the output that is judged; None leaves the choice open.

    Raises:
        DataError: the reference is not finite, or the labels do not fit it.
        InputError: see `choose_judge`.
    """
    if (bad := reference.not_finite) is not None:
        row = int((~finite_rows(as_float64(reference.outputs[bad], bad))).argmax())
        raise DataError(f"{reference.variant.label}: the reference is not finite in sample {row}, output '{bad}'")
    targets = samples.all_targets
    if wanted is None and "labels" not in targets and not set(targets) & set(reference.outputs):
        targets = {}  # what else a file may hold
    return choose_judge(wanted, reference.outputs, targets, output=output, kinds=_kinds(reference, models))


def judged(row: Measured, judge: Judge) -> Measured:
    """A row with its scores and its decisions.

    Raises:
        DataError, InputError: labels that do not fit; see `Metric.scores`.
    """
    try:
        return replace(row, scores=judge.scores(row.outputs), decided=judge.decision_scores(row.outputs))
    except DataError as error:
        raise DataError(f"{row.variant.label}: {error}") from error


def _kinds(reference: Measured, models: Sequence[ModelDescription]) -> dict[str, OutputKind]:
    """How each output is read: by the first ONNX file with as many of them, else by the values."""
    names, outputs = tuple(reference.outputs), reference.outputs
    for model in models:
        if model.kind != "onnx":
            continue
        graph = import_graph(read_model(model.path))
        theirs = [tensor.name for tensor in graph.outputs]
        if len(theirs) != len(names):
            continue
        pairs = dict(zip(theirs, theirs if set(theirs) == set(names) else names, strict=True))
        found = recognise_outputs(graph, {name: outputs[own] for name, own in pairs.items()})
        return {pairs[name]: kind for name, kind in found.items()}
    return {name: recognise_values(array) for name, array in outputs.items() if array.dtype.kind == "f"}


def require_comparable(row: Measured, reference: Measured) -> None:
    """Refuses a row that the reference can't be compared with.

    Raises:
        InputError: an output of another shape.
        DataError: another number of outputs.
    """
    for name, (expected, found) in pair_outputs(reference.outputs, row.outputs, str(row.variant.model.path)).items():
        if expected.shape != found.shape:
            raise InputError(
                f"{row.variant.model.path}: its output {name} has the shape {found.shape}, that of "
                f"{reference.variant.model.path} {expected.shape}; give two models with the same outputs"
            )


def compare_rows(row: Measured, baseline: Measured, judge: Judge) -> Comparison | None:
    """A row against another; None where the other is not finite, so that nothing can be compared with it.

    Raises:
        DataError: outputs of other shapes.
    """
    if baseline.not_finite is not None:
        return None
    pairs = pair_outputs(baseline.outputs, row.outputs, row.variant.label)
    difference = None
    if judge.metric is not None and row.scores is not None and baseline.scores is not None:
        difference = compare_scores(judge.metric, baseline.scores, row.scores)
    outputs = {name: compare_tensors(*pair) for name, pair in pairs.items()}
    name, decisions = judge.name_in(row.outputs), _compare_decided(baseline, row)
    has_direction = decisions is None and row.outputs[name][0].size > 1 and outputs[name].finite
    return Comparison(
        baseline=baseline.variant.label,
        outputs=outputs,
        output=name,
        decisions=decisions,
        cosine=outputs[name].cosine_mean if has_direction else None,
        difference=difference,
        retention=None if difference is None else difference.retention,
    )


def _compare_decided(baseline: Measured, row: Measured) -> Decisions | None:
    """The decisions of two rows, position by position; None where they decide nothing."""
    if baseline.decided is None or row.decided is None or baseline.not_finite is not None:
        return None
    expected, found = (scores.reshape(-1, scores.shape[-1]) for scores in (baseline.decided, row.decided))
    return compare_decisions(expected, found) if expected.shape[1] > 1 else compare_classes(expected[:, 0], found[:, 0])


def budget_of(row: Measured, rows: Sequence[Measured], judge: Judge) -> tuple[BudgetStep, ...]:
    """The steps that lead from the reference to a row, and the noise floor; the floor alone for the reference.

    Args:
        row: one of `rows`.
        rows: all that have run; the first is the reference.
        judge: of all of them.
    """
    chain = _chain(row, rows)
    names = ["", *(_name_step(before.variant, after.variant) for before, after in pairwise(chain))]
    stages = [StageOutputs(step, found.variant.label, found.outputs) for step, found in zip(names, chain, strict=True)]
    steps = error_budget(stages, None, decide=False)
    told = [
        replace(step, agreement=None if decided is None else decided.agreement, accuracy=_level(after, judge))
        for step, (before, after) in zip(steps, pairwise(chain), strict=True)
        for decided in [_compare_decided(before, after)]
    ]
    return (*told, row.floor)


def _level(row: Measured, judge: Judge) -> float | None:
    """The metric of a row, a share in [0, 1]; None without labels."""
    if judge.metric is None or row.scores is None:
        return None
    score = score_of(judge.metric, row.scores)
    return score.value / 100 if score.unit else score.value


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
