"""The repair of a model: prepare, choose a method, change the parameters, clean, fold, cast."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_modules
from vsfix.graph_passes.cleaning.deployment import cleaning_passes
from vsfix.graph_passes.errors import CheckFailedError, VsfixError
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.folding.recompose_batch_norm import LeaveChannelsLast
from vsfix.graph_passes.io.model_file import export_model, read_metadata
from vsfix.graph_passes.ir.graph_pass import Change, PassPipeline, PassResult
from vsfix.graph_passes.ir.remove_identities import RemoveIdentities
from vsfix.graph_passes.ir.runtime import OpenModel
from vsfix.graph_passes.measurement.measurement import LARGEST_INPUT
from vsfix.graph_passes.noise.marker import REPAIR_KEY, RemoveMarkers
from vsfix.graph_passes.noise_average.nearness import MATCH, REFINE
from vsfix.graph_passes.precision.typed_batch_norm import check_half_batch_norms, require_statistics
from vsfix.graph_passes.precision.value_scan import doubtful_constants, require_finite_values
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import (
    Batch,
    first_samples,
    require_different_samples,
    samples_in,
    take_rows,
)
from vsfix.pipeline.casting.cast_judge import CastJudge
from vsfix.pipeline.casting.casting import CastModel, cast_model
from vsfix.pipeline.casting.quantization import quantize_model, require_calibration
from vsfix.pipeline.comparison.agreement import Agreement
from vsfix.pipeline.comparison.rounding_floor import rounding_floor
from vsfix.pipeline.comparison.tensor_comparison import comparable, compare_tensors
from vsfix.pipeline.data.calibration import fixed_batch_size, model_input_names
from vsfix.pipeline.data.random_inputs import draw_inputs, stated_shape
from vsfix.pipeline.inspection.inspection import Inspection, inspect_graph, look_at
from vsfix.pipeline.inspection.preparation import PreparedModel, prepare_model, was_healthy

from .averaging import Averaging
from .candidates import agreements
from .changed_parameters import changed_parameters
from .estimation import Found, estimate
from .label_judge import LabelJudge
from .plan import RepairPlan, plan_repair
from .repair_config import AVERAGING, NARROW, QUANTIZED, TENSOR_FLOAT, RepairConfig
from .repair_report import BatchNormOutcome, Repair, RepairReport

FEW_SAMPLES = 16
AVERAGED = (MATCH, REFINE)
# Folding reorders floating-point operations and nothing else; a fold that loses more than this is a wrong fold.
MIN_FOLD_SNR_DB = 80.0
MIN_FOLD_SNR_DB_HALF = 40.0
FLOOR_MARGIN_DB = 6.0  # a fold rounds at other points than the weights of the floor do
JUDGED_CAST = 256  # samples on which a cast is compared with what it was
UNJUDGED_SAMPLES = 16  # random ones, to compare both graphs on where there is no data


def repair_model(
    model: onnx.ModelProto | PreparedModel,
    batches: Sequence[Batch],
    open_model: OpenModel,
    config: RepairConfig,
    *,
    judged_on: Sequence[Batch] | None = None,
    averaged_on: Sequence[Batch] | None = None,
    judge: LabelJudge | None = None,
    unlabelled: Sequence[Batch] = (),
) -> Repair:
    """Repairs, cleans and folds a model; the input is not changed.

    Args:
        model: a checked model, or one that `prepare_model` has prepared already with the noise of the config.
        batches: the calibration set; may be empty where the method needs none.
        open_model: the runtime.
        config: how to repair.
        judged_on: the data on which the shift is measured before and after; the first part of what the estimates rest
            on where not given.
        averaged_on: what a match rests on where lost noise was inferred from all of the data; the data where not given.
        judge: labelled data that chooses among the candidates.
        unlabelled: data on which what is written is compared with the file as given and with its noise average.

    Raises:
        ModelError: nothing that can be repaired; the message says what to do.
        DataError: data that can't carry an estimate, or none where the method needs some.
        CheckFailedError: the runtime does not repeat itself, or the folded graph does not compute what the repaired
            one does, or a weight or an output is beyond the precision that was asked for.
    """
    if config.precision in QUANTIZED:
        require_calibration(config.precision, batches)
    require_different_samples(batches)
    prepared = model if isinstance(model, PreparedModel) else prepare(model, config)
    require_statistics(prepared.graph)
    plan = plan_repair(prepared, batches, open_model, config)
    prepared = prepared.with_noise(plan.noise)
    matched_on = batches if averaged_on is None or plan.method not in AVERAGING else averaged_on
    found = estimate(plan, prepared, matched_on, open_model, config, judged_on=judged_on, judge=judge)
    graph = prepared.graph.copy()
    written = found.write(graph)
    after = _after(graph, found, open_model) if written.modified else found.before
    subjects = {change.subject for change in written.changed}
    changed = changed_parameters(prepared.source, prepared.graph, graph, subjects)
    unfolded = export_model(graph, prepared.source)
    uses = {module.name: [use.name for use in module.uses] for module in find_modules(graph)}
    fold = FoldBatchNorm(forward=config.precision not in QUANTIZED) if config.fold else None
    clean = PassPipeline(cleaning_passes(fold))
    clean(graph)
    graph.cleanup()  # nodes that lead to no output, whoever left them
    final = export_model(graph, prepared.source, _metadata(prepared, found, written, config))
    inputs, unchecked = _inputs_of_check(unfolded, found.judges, open_model, config.seed)
    fold_snr_db, amplified = _check_equal(unfolded, final, inputs, open_model, config.seed) if inputs else (None, ())
    cast = _cast(graph, final, inputs, batches, open_model, config, judge)
    runnable = final if cast is None else cast.runnable
    report = RepairReport(
        method=found.method,
        method_reason=found.reason,
        data=found.data,
        samples=found.samples,
        judged_on=found.before.samples,
        batch_norms=_outcomes(after, found, written, uses, _folds(clean, graph)),
        prepared=prepared.changes,
        removed=_removed(clean),
        warnings=(
            *_warnings(prepared, plan, found, config),
            *doubtful_constants(graph),
            *unchecked,
            *amplified,
            *_cast_on_random_numbers(config, found.judges, inputs),
            *(cast.report.warnings if cast is not None else ()),
        ),
        compared_on=samples_in(inputs) if inputs else 0,
        fold_snr_db=fold_snr_db,
        precision=None if cast is None else cast.report,
        route=found.before.route,
        agreements=_agreements(prepared, found, runnable, unlabelled, open_model, config),
        **_averaged(found.averaging),
    )
    return Repair(
        final if cast is None else cast.model, unfolded, runnable, report, changed.arrays, changed.not_carried()
    )


def prepare(model: onnx.ModelProto, config: RepairConfig) -> PreparedModel:
    """Prepares a model for a repair.

    A file without BatchNorm is refused, but where nothing is to be repaired, or where vsfix folded them.

    Raises:
        ModelError, InputError: see `prepare_model`.
    """
    folded_by_vsfix = REPAIR_KEY in read_metadata(model)
    needs_batch_norms = config.method != "none" and not (config.method == "auto" and folded_by_vsfix)
    return prepare_model(model, config.noise, needs_batch_norms=needs_batch_norms)


def _after(graph: gs.Graph, found: Found, open_model: OpenModel) -> Inspection:
    """The repaired graph, looked at on the samples on which it was before."""
    if found.moments_after is not None:
        return look_at(graph, found.before.samples, found.moments_after)
    return inspect_graph(graph, found.judges, open_model)


def _removed(clean: PassPipeline) -> tuple[str, ...]:
    """The noise layers and identities that the cleaning passes took out."""
    names = (RemoveMarkers.name, RemoveIdentities.name)
    return tuple(change.subject for name in names for result in clean.results_of(name) for change in result.changed)


def _cast(
    graph: gs.Graph,
    final: onnx.ModelProto,
    inputs: Batch,
    batches: Sequence[Batch],
    open_model: OpenModel,
    config: RepairConfig,
    labels: LabelJudge | None,
) -> CastModel | None:
    """The final model in the precision that was asked for; where none was, what is there is looked through."""
    if config.precision is not None:
        whole = fixed_batch_size(final) is not None
        few = [inputs] if inputs else []
        drawn = first_samples(batches, JUDGED_CAST, whole=whole) if batches else few
        keep = config.keep_metric
        wide = keep is not None or config.precision in QUANTIZED
        judge = CastJudge(final, drawn if wide else few, open_model, labels, config.output_kinds)
        if config.precision in QUANTIZED:
            return quantize_model(final, config.precision, batches, open_model, judge=judge, keep=keep)
        precision = "fp32" if config.precision == TENSOR_FLOAT else config.precision
        return cast_model(final, precision, inputs, open_model, judge=judge, keep=keep)
    check_half_batch_norms(graph)
    require_finite_values(graph)
    return None


def _cast_on_random_numbers(config: RepairConfig, judges: Sequence[Batch], inputs: Batch) -> tuple[str, ...]:
    """That a cast was judged on numbers that no model was trained on."""
    if config.precision not in NARROW or judges or not inputs:
        return ()
    numbers = f"{samples_in(inputs)} samples of random numbers"
    return (f"in {config.precision} the file was compared on {numbers} alone; give --data, on which it may overflow",)


def _agreements(
    prepared: PreparedModel,
    found: Found,
    repaired: onnx.ModelProto,
    batches: Sequence[Batch],
    open_model: OpenModel,
    config: RepairConfig,
) -> tuple[Agreement, ...]:
    """The agreement of what is written on data without labels; nothing where there is none."""
    if not batches:
        return ()
    averaged = None if found.averaging is None else found.averaging.averaged(prepared.graph)
    return agreements(averaged, prepared.graph, repaired, batches, open_model, config)


def _averaged(averaging: Averaging | None) -> dict[str, Any]:
    """The part of the report on the noise-averaged network."""
    if averaging is None:
        return {}
    return {
        "severity": averaging.severity,
        "severity_before": averaging.before,
        "severity_after": averaging.after,
        "judges": averaging.judges,
        "candidates": averaging.candidates,
        "outputs": averaging.outputs,
        "layers": averaging.layers,
        "cross_fitted": averaging.cross_fitted,
    }


def _metadata(prepared: PreparedModel, found: Found, written: PassResult, config: RepairConfig) -> dict[str, str]:
    """The metadata of the written file on its repair; a cast or a fold leaves standing what was said before."""
    earlier, now = prepared.repaired, [change.subject for change in written.changed]
    if earlier and not now:
        return {REPAIR_KEY: read_metadata(prepared.source)[REPAIR_KEY]}
    severity = None if found.averaging is None else found.averaging.severity
    is_near = severity is not None and severity.is_healthy and not severity.is_open
    said = {
        "method": found.method,
        "data": found.data,
        "samples": found.samples,
        "seed": config.seed,
        "vsfix": version("vsfix"),
        "repaired": list(dict.fromkeys([*earlier, *now])),
        "healthy": not now and (is_near or was_healthy(read_metadata(prepared.source))),
    }
    return {REPAIR_KEY: json.dumps(said)}


def _warnings(prepared: PreparedModel, plan: RepairPlan, found: Found, config: RepairConfig) -> tuple[str, ...]:
    """Everything that makes the result doubtful."""
    warnings = (*prepared.warnings, *plan.warnings, *found.warnings, *found.before.warnings)
    if config.noise and prepared.repaired:
        again = "vsfix repaired this file already; repaired twice it computes something else: start from the export"
        warnings = (*warnings, again)
    if config.precision == TENSOR_FLOAT:
        told = "tf32 is no type of a file: it holds float32; build it with `vsfix build --precision tf32`"
        warnings = (*warnings, told)
    if found.method not in (*AVERAGED, "none") and 0 < found.samples < FEW_SAMPLES:
        few = f"the repair rests on {found.samples} samples; its statistics are surer from {FEW_SAMPLES} on"
        return (*warnings, few)
    return warnings


def _folds(clean: PassPipeline, graph: gs.Graph) -> PassResult | None:
    """The outcome of the fold for each BatchNorm; None where none was to be folded.

    One that was written as a Mul and an Add on the last axis is folded where these are.
    """
    folds, written = (next(iter(clean.results_of(name)), None) for name in (FoldBatchNorm.name, LeaveChannelsLast.name))
    if folds is None or written is None:
        return folds
    nodes = {node.name for node in graph.nodes}
    names = {change.subject for change in written.changed if f"{change.subject}.mul" not in nodes}
    late = tuple(Change(name, "folded as a scale and a shift of the last axis") for name in sorted(names))
    return PassResult(
        folds.pass_name, (*folds.changed, *late), tuple(kept for kept in folds.skipped if kept.subject not in names)
    )


def _outcomes(
    after: Inspection, found: Found, written: PassResult, uses: Mapping[str, Sequence[str]], folds: PassResult | None
) -> tuple[BatchNormOutcome, ...]:
    """One outcome for each BatchNorm, which is folded where all of its uses are."""
    actions = {change.subject: change.action for change in written.changed}
    kept = {subject.subject: f"kept: {subject.reason}" for subject in written.skipped}
    folded = {change.subject: change.action for change in folds.changed} if folds else {}
    unfolded = {subject.subject: subject.reason for subject in folds.skipped} if folds else {}
    outcomes = []
    for row, new in zip(found.before.rows, after.rows, strict=True):
        statistics = found.estimates.get(row.name)
        is_folded = all(use in folded for use in uses[row.name])
        said = [unfolded.get(use) if not is_folded else folded[use] for use in uses[row.name]]
        outcomes.append(
            BatchNormOutcome(
                before=row,
                after=new,
                method=found.method if row.name in actions or statistics is not None else "",
                shift=None if statistics is None or not np.isfinite(statistics.shift) else statistics.shift,
                interval=None if statistics is None else statistics.interval,
                repaired=row.name in actions,
                action=actions.get(row.name) or kept.get(row.name, "kept"),
                folded=is_folded,
                fold_reason="; ".join(dict.fromkeys(filter(None, said))) or "folding was not asked for",
            )
        )
    return tuple(outcomes)


def _inputs_of_check(
    model: onnx.ModelProto, judges: Sequence[Batch], open_model: OpenModel, seed: int
) -> tuple[Batch, tuple[str, ...]]:
    """The inputs that the deployed graph is compared on, random where there is no data; or a warning without any."""
    if judges:
        return _few(judges[0], fixed_batch_size(model)), ()
    names = model_input_names(model)
    shapes = [stated_shape(model, name) for name in names]
    try:
        inputs = draw_inputs(names, shapes, fixed_batch_size(model) or UNJUDGED_SAMPLES, seed)
        with open_model(model) as runner:
            runner.run(inputs)
    except VsfixError as error:  # not every model runs on any numbers
        return {}, (f"the deployed graph was not compared with the repaired one: {error}",)
    return inputs, ()


def _few(batch: Batch, fixed: int | None) -> Batch:
    """The first samples of a batch, no more than a run of large ones holds."""
    sample = sum(array.nbytes for array in take_rows(batch, slice(1)).values())
    return batch if fixed is not None else dict(take_rows(batch, slice(max(1, LARGEST_INPUT // max(sample, 1)))))


@stage("checking the deployed graph against the repaired one")
def _check_equal(
    repaired: onnx.ModelProto, final: onnx.ModelProto, inputs: Batch, open_model: OpenModel, seed: int
) -> tuple[float | None, tuple[str, ...]]:
    """Compares the outputs of both graphs on one batch.

    Returns:
        The smallest SNR in dB, None where bit-equal; and a warning where the network amplifies every rounding.
    """
    with open_model(repaired) as runner:  # one after the other: a large model fits once
        expected = runner.run(inputs)
    with open_model(final) as runner:
        found = runner.run(inputs)
    worst = min(compare_tensors(*comparable(expected[name], found[name])).snr_db for name in expected)
    half_types = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    half = any(tensor.data_type in half_types for tensor in repaired.graph.initializer)
    wanted = MIN_FOLD_SNR_DB_HALF if half else MIN_FOLD_SNR_DB
    if worst >= wanted:
        return (None if np.isinf(worst) else worst), ()
    floor = rounding_floor(repaired, expected, inputs, open_model, seed) - FLOOR_MARGIN_DB
    if np.isinf(floor):  # a neighbour that gives no numbers excuses nothing
        floor = wanted
    if not worst >= floor:
        raise CheckFailedError(
            f"the folded graph differs from the repaired one (SNR {worst:.1f} dB, wanted {min(wanted, floor):.0f}): "
            "nothing is written; try --no-fold"
        )
    return worst, (
        f"the network amplifies rounding: the last digit of its weights moves its outputs to an SNR of "
        f"{floor + FLOOR_MARGIN_DB:.1f} dB, the fold to {worst:.1f}; compare runtimes with `vsfix verify` on your data",
    )
