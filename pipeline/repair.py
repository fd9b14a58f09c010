"""The repair of a model: prepare, choose a method, estimate the statistics, write them, clean, fold, cast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm import find_batch_norms
from vsfix.graph_passes.batches import (
    Batch,
    first_samples,
    prescribed_batch_size,
    require_different_samples,
    samples_in,
)
from vsfix.graph_passes.errors import CheckFailedError, InputError, VsfixError
from vsfix.graph_passes.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.graph_pass import PassPipeline, PassResult
from vsfix.graph_passes.inference import Array, OpenModel
from vsfix.graph_passes.model_file import export_model, read_metadata
from vsfix.graph_passes.noise_analysis import analyse_noise
from vsfix.graph_passes.remove_identities import RemoveIdentities, RemoveMarkers
from vsfix.graph_passes.repair_statistics import RepairStatistics
from vsfix.graph_passes.typed_batch_norm import check_half_batch_norms, require_statistics
from vsfix.graph_passes.value_scan import doubtful_constants, require_finite_values

from .calibration import fixed_batch_size, model_input_names
from .casting import CastModel, cast_model
from .estimation import Estimation, estimate_statistics
from .inspection import Inspection, inspect_graph
from .method_choice import MethodChoice, choose_method
from .preparation import REPAIR_KEY, PreparedModel, prepare_model, repaired_batch_norms
from .quantization import quantize_model, require_calibration
from .random_inputs import draw_inputs, stated_shape
from .repair_config import QUANTIZED, TENSOR_FLOAT, RepairConfig
from .repair_report import BatchNormOutcome, Repair, RepairReport
from .rounding_floor import rounding_floor
from .tensor_comparison import comparable, compare_tensors

FEW_SAMPLES = 16
JUDGED_SAMPLES = 256  # enough to tell a variance within a few percent
# Folding reorders floating-point operations and nothing else; a fold that loses more than this is a wrong fold.
MIN_FOLD_SNR_DB = 80.0
MIN_FOLD_SNR_DB_HALF = 40.0
FLOOR_MARGIN_DB = 6.0  # a fold rounds in other places than the weights of the floor do
UNJUDGED_SAMPLES = 16  # random ones, to compare both graphs on where there is no data


def repair_model(
    model: onnx.ModelProto,
    batches: Sequence[Batch],
    open_model: OpenModel,
    config: RepairConfig,
    *,
    judged_on: Sequence[Batch] | None = None,
) -> Repair:
    """Repairs, cleans and folds a model; the input is not changed.

    Args:
        model: a checked model.
        batches: the calibration set; may be empty where the method needs none.
        open_model: the runtime.
        config: how to repair.
        judged_on: the data on which the shift is measured before and after; the first part of what the estimates rest
            on where not given.

    Raises:
        ModelError: nothing that can be repaired; the message says what to do.
        DataError: data that can't carry an estimate, or none where the method needs some.
        CheckFailedError: the runtime does not repeat itself, or the folded graph does not compute what the repaired
            one does, or a weight or an output is beyond the precision that was asked for.
    """
    if config.number_type in QUANTIZED:
        require_calibration(config.number_type, batches)
    require_different_samples(batches)
    prepared = prepare_model(model, config.noise, needs_batch_norms=needs_batch_norms(model, config))
    graph = prepared.graph
    require_statistics(graph)
    choice = choose_method(prepared, batches, open_model, config)
    layers, reasons = _choose_layers(graph, config.layers)
    estimation = estimate_statistics(choice.method, prepared, batches, open_model, layers, config)
    whole = prescribed_batch_size(graph) is not None
    judges = judged_on or first_samples(estimation.batches, JUDGED_SAMPLES, whole=whole)
    before = inspect_graph(graph, judges, open_model)
    repair = RepairStatistics(estimation.estimates, {**reasons, **estimation.reasons})(graph)
    after = inspect_graph(graph, judges, open_model)
    statistics = _statistics(graph, repair)
    unfolded = export_model(graph, model)
    fold = FoldBatchNorm(forward=config.number_type not in QUANTIZED)
    clean = PassPipeline([RemoveMarkers(), RemoveIdentities(), *([fold] if config.fold else [])])
    clean(graph)
    final = export_model(graph, model, _metadata(prepared, choice, estimation, repair, config))
    inputs, unchecked = _inputs_of_check(unfolded, judges, open_model, config.seed)
    fold_snr_db, amplified = _check_equal(unfolded, final, inputs, open_model, config.seed) if inputs else (None, ())
    cast = _cast(graph, final, inputs, batches, open_model, config)
    report = RepairReport(
        method=choice.method,
        method_reason=choice.reason,
        data=estimation.data,
        samples=estimation.samples,
        judged_on=before.samples,
        batch_norms=_outcomes(before, after, estimation, repair, clean.results[2] if config.fold else None),
        prepared=prepared.changes + choice.changes,
        removed=tuple(change.subject for result in clean.results[:2] for change in result.changed),
        warnings=(
            *_warnings(prepared, choice, estimation, before, config),
            *doubtful_constants(graph),
            *unchecked,
            *amplified,
        ),
        compared_on=samples_in(inputs) if inputs else 0,
        fold_snr_db=fold_snr_db,
        precision=None if cast is None else cast.report,
        route=before.route,
    )
    runnable = final if cast is None else cast.runnable
    return Repair(final if cast is None else cast.model, unfolded, runnable, report, statistics)


def needs_batch_norms(model: onnx.ModelProto, config: RepairConfig) -> bool:
    """Whether a file without BatchNorm is refused: not where nothing is to be repaired, or where vsfix folded them."""
    folded_by_vsfix = REPAIR_KEY in read_metadata(model)
    return config.method != "none" and not (config.method == "auto" and folded_by_vsfix)


def _cast(
    graph: gs.Graph,
    final: onnx.ModelProto,
    inputs: Batch,
    batches: Sequence[Batch],
    open_model: OpenModel,
    config: RepairConfig,
) -> CastModel | None:
    """The final model in the precision that was asked for; where none was, what is there is looked through."""
    if config.number_type in QUANTIZED:
        return quantize_model(final, config.number_type, batches, open_model)
    if config.number_type is not None:
        precision = "fp32" if config.number_type == TENSOR_FLOAT else config.number_type
        return cast_model(final, precision, inputs, open_model)
    check_half_batch_norms(graph)
    require_finite_values(graph)
    return None


def _choose_layers(graph: gs.Graph, layers: str) -> tuple[list[str], dict[str, str]]:
    """The BatchNorms to estimate, and the reason for each of the others."""
    names = [batch_norm.name for batch_norm in find_batch_norms(graph)]
    if layers == "auto":
        reached = analyse_noise(graph).reached
        chosen = [name for name in names if name in reached]
        reason = "no noise reaches it"
    elif layers == "all":
        return names, {}
    else:
        chosen = [name for name in names if fnmatchcase(name, layers)]
        reason = f"its name does not match '{layers}'"
        if not chosen:
            raise InputError(f"--layers '{layers}' matches no BatchNorm; `vsfix inspect` lists their names")
    return chosen, {name: reason for name in names if name not in chosen}


def _metadata(
    prepared: PreparedModel, choice: MethodChoice, estimation: Estimation, repair: PassResult, config: RepairConfig
) -> dict[str, str]:
    """What the written file says about its repair; a cast or a fold leaves standing what was said before."""
    known = read_metadata(prepared.source)
    earlier, now = repaired_batch_norms(known), [change.subject for change in repair.changed]
    if earlier and not now:
        return {REPAIR_KEY: known[REPAIR_KEY]}
    said = {
        "method": choice.method,
        "data": estimation.data,
        "samples": estimation.samples,
        "seed": config.seed,
        "vsfix": version("vsfix"),
        "repaired": list(dict.fromkeys([*earlier, *now])),
    }
    return {REPAIR_KEY: json.dumps(said)}


def _warnings(
    prepared: PreparedModel, choice: MethodChoice, estimation: Estimation, before: Inspection, config: RepairConfig
) -> tuple[str, ...]:
    """Everything that makes the result doubtful."""
    warnings = (*prepared.warnings, *choice.warnings, *estimation.warnings, *before.warnings)
    if config.number_type == TENSOR_FLOAT:
        told = "tf32 is no type of a file: it holds float32; build it with `vsfix build --precision tf32`"
        warnings = (*warnings, told)
    if 0 < estimation.samples < FEW_SAMPLES:
        few = f"the repair rests on {estimation.samples} samples; its statistics are surer from {FEW_SAMPLES} on"
        return (*warnings, few)
    return warnings


def _statistics(graph: gs.Graph, repair: PassResult) -> dict[str, Array]:
    """The running statistics of the BatchNorms that were repaired, float32, by state_dict name."""
    repaired = {change.subject for change in repair.changed}
    arrays: dict[str, Array] = {}
    for batch_norm in find_batch_norms(graph):
        if batch_norm.name in repaired:
            arrays[f"{batch_norm.name}.running_mean"] = batch_norm.mean.astype(np.float32)
            arrays[f"{batch_norm.name}.running_var"] = batch_norm.variance.astype(np.float32)
    return arrays


def _outcomes(
    before: Inspection, after: Inspection, estimation: Estimation, repair: PassResult, folds: PassResult | None
) -> tuple[BatchNormOutcome, ...]:
    """One outcome for each BatchNorm."""
    actions = {change.subject: change.action for change in repair.changed}
    kept = {subject.subject: f"kept: {subject.reason}" for subject in repair.kept}
    folded = {change.subject: change.action for change in folds.changed} if folds else {}
    unfolded = {subject.subject: subject.reason for subject in folds.kept} if folds else {}
    outcomes = []
    for row, new in zip(before.rows, after.rows, strict=True):
        estimate = estimation.estimates.get(row.name)
        outcomes.append(
            BatchNormOutcome(
                before=row,
                after=new,
                method=estimation.methods.get(row.name, ""),
                shift=None if estimate is None or not np.isfinite(estimate.shift) else estimate.shift,
                interval=None if estimate is None else estimate.interval,
                repaired=row.name in actions,
                action=actions.get(row.name) or kept[row.name],
                folded=row.name in folded,
                fold_reason=folded.get(row.name) or unfolded.get(row.name, "folding was not asked for"),
            )
        )
    return tuple(outcomes)


def _inputs_of_check(
    model: onnx.ModelProto, judges: Sequence[Batch], open_model: OpenModel, seed: int
) -> tuple[Batch, tuple[str, ...]]:
    """What the deployed graph is compared on, random numbers where there is no data; or a warning that nothing is."""
    if judges:
        return judges[0], ()
    names = model_input_names(model)
    shapes = [stated_shape(model, name) for name in names]
    try:
        inputs = draw_inputs(names, shapes, fixed_batch_size(model) or UNJUDGED_SAMPLES, seed)
        with open_model(model) as runner:
            runner.run(inputs)
    except VsfixError as error:  # not every model runs on any numbers
        return {}, (f"the deployed graph was not compared with the repaired one: {error}",)
    return inputs, ()


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
            f"the folded graph departs from the repaired one (SNR {worst:.1f} dB, wanted {min(wanted, floor):.0f}): "
            "nothing is written; try --no-fold"
        )
    return worst, (
        f"the network amplifies rounding: the last digit of its weights moves its outputs to an SNR of "
        f"{floor + FLOOR_MARGIN_DB:.1f} dB, the fold to {worst:.1f}; compare runtimes with `vsfix verify` on your data",
    )
