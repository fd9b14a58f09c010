"""The repair of a model: estimate the statistics of inference, write them, remove the markers, fold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import version

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.batch_norm import require_batch_norms, separate_statistics
from vsfix.graph_passes.errors import CheckFailedError, DataError, InputError, ModelError
from vsfix.graph_passes.estimators import Estimate, exact, paired
from vsfix.graph_passes.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.graph_pass import PassPipeline, PassResult
from vsfix.graph_passes.inference import Array, OpenModel
from vsfix.graph_passes.marker import EXPORT_METADATA_KEY
from vsfix.graph_passes.measurement import Batch
from vsfix.graph_passes.model_file import export_model, import_graph, read_metadata
from vsfix.graph_passes.noise_analysis import NoiseMap, analyse_noise
from vsfix.graph_passes.remove_identities import RemoveIdentities, RemoveMarkers
from vsfix.graph_passes.repair_statistics import RepairStatistics

from .inspection import BatchNormRow, Inspection, inspect_graph
from .metrics import compare_tensors

METHODS = ("auto", "exact", "paired")
METADATA_KEY = "vsfix.repair"
FEW_SAMPLES = 16
# Folding reorders floating-point operations and nothing else; a fold that loses more than this is a wrong fold.
MIN_FOLD_SNR_DB = 80.0
MIN_FOLD_SNR_DB_HALF = 40.0


@dataclass(frozen=True)
class RepairConfig:
    """How to repair.

    Attributes:
        method: `exact`, `paired`, or `auto`, which takes `paired` wherever the file says where the noise was.
        layers: `auto` (the BatchNorms that noise reaches), `all`, or a glob over their names.
        fold: fold BatchNorm into Conv and Gemm.
        seed: of the noise in `paired`.
        repeats: runs with the noise on for each run with the noise off in `paired`.
        max_memory: bytes of cached activations to hold in memory; more goes to the disk.

    Raises:
        InputError: an unknown method, no repeats, or a negative limit.
    """

    method: str = "auto"
    layers: str = "auto"
    fold: bool = True
    seed: int = 0
    repeats: int = 8
    max_memory: int = DEFAULT_MAX_MEMORY

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method '{self.method}': choose one of {', '.join(METHODS)}")
        if self.repeats < 1:
            raise InputError(f"repeats {self.repeats}: at least one run with the noise on is needed")
        if self.max_memory < 0:
            raise InputError(f"max-memory {self.max_memory}: must not be negative")


@dataclass(frozen=True)
class BatchNormOutcome:
    """What happened to one BatchNorm: its rows before and after, the action, and the reason where it was left alone."""

    before: BatchNormRow
    after: BatchNormRow
    repaired: bool
    action: str
    folded: bool
    fold_reason: str


@dataclass(frozen=True)
class RepairReport:
    """The whole repair, for the table, the JSON and the page.

    Attributes:
        method: what was done in the end: `exact`, `paired`, or `none`.
        method_reason: why.
        samples: the size of the calibration set.
        judged_on: the number of samples on which the shift before and after was measured.
        batch_norms: one outcome for each, in the order of the graph.
        removed: the noise layers and identities that were removed.
        warnings: what a person should know before trusting the numbers.
        fold_snr_db: signal to noise of the final graph against the repaired graph before removal and folding, None
            when they are equal to the bit.
    """

    method: str
    method_reason: str
    samples: int
    judged_on: int
    batch_norms: tuple[BatchNormOutcome, ...]
    removed: tuple[str, ...]
    warnings: tuple[str, ...]
    fold_snr_db: float | None


@dataclass(frozen=True)
class Repair:
    """The result of `repair_model`.

    Attributes:
        model: the deployable model.
        unfolded: the repaired model before its markers were removed and anything was folded.
        report: what was done.
        statistics: the repaired running statistics by state_dict name, `<module>.running_mean` and `.running_var`.
    """

    model: onnx.ModelProto = field(repr=False)
    unfolded: onnx.ModelProto = field(repr=False)
    report: RepairReport
    statistics: Mapping[str, Array] = field(repr=False)


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
        model: a checked model with BatchNorms in inference form.
        batches: the calibration set.
        open_model: the runtime.
        config: how to repair.
        judged_on: the data on which the shift is measured before and after; the calibration set where not given.

    Raises:
        ModelError: nothing that can be repaired; the message says what to do.
        DataError: data that can't carry an estimate.
        CheckFailedError: the folded graph does not compute what the repaired one does.
    """
    if not batches:
        raise DataError("the calibration set is empty; give at least one sample")
    graph = import_graph(model)
    require_batch_norms(graph)
    separate_statistics(graph)
    noise_map = analyse_noise(graph)
    layers, reasons = _choose_layers(graph, noise_map, config.layers)
    method, method_reason = _choose_method(model, noise_map, layers, config)
    judged_on = judged_on or batches
    samples = sum(len(next(iter(batch.values()))) for batch in batches)
    before = inspect_graph(graph, judged_on, open_model)
    estimates = _estimate(method, graph, batches, open_model, layers, config)
    repair = RepairStatistics(estimates, reasons)(graph)
    after = inspect_graph(graph, judged_on, open_model)
    statistics = _statistics(graph, repair)
    unfolded = export_model(graph, model)
    clean = PassPipeline([RemoveMarkers(), RemoveIdentities(), *([FoldBatchNorm()] if config.fold else [])])
    clean(graph)
    metadata = {"method": method, "samples": samples, "seed": config.seed, "vsfix": version("vsfix")}
    metadata |= {"repaired": [change.subject for change in repair.changed]}
    final = export_model(graph, model, {METADATA_KEY: json.dumps(metadata)})
    report = RepairReport(
        method=method,
        method_reason=method_reason,
        samples=samples,
        judged_on=before.samples,
        batch_norms=_outcomes(before, after, repair, clean.results, config.fold),
        removed=tuple(change.subject for result in clean.results[:2] for change in result.changed),
        warnings=before.warnings + _warnings(estimates, samples),
        fold_snr_db=_check_equal(unfolded, final, batches[0], open_model),
    )
    return Repair(final, unfolded, report, statistics)


def _choose_layers(graph: gs.Graph, noise_map: NoiseMap, layers: str) -> tuple[list[str], dict[str, str]]:
    """The BatchNorms to estimate, and the reason for each of the others."""
    names = [batch_norm.name for batch_norm in require_batch_norms(graph)]
    if layers == "auto":
        chosen = [name for name in names if name in noise_map.reached]
        reason = "no noise reaches it"
    elif layers == "all":
        return names, {}
    else:
        chosen = [name for name in names if fnmatchcase(name, layers)]
        reason = f"its name does not match '{layers}'"
        if not chosen:
            raise InputError(f"--layers '{layers}' matches no BatchNorm; `vsfix inspect` lists their names")
    return chosen, {name: reason for name in names if name not in chosen}


def _choose_method(
    model: onnx.ModelProto, noise_map: NoiseMap, layers: Sequence[str], config: RepairConfig
) -> tuple[str, str]:
    """The method, and why it was taken."""
    if not noise_map.sources and (config.method in ("auto", "paired") or config.layers == "auto"):
        if EXPORT_METADATA_KEY in read_metadata(model):
            return "none", "the export says that the network has no noise layer: there is nothing to repair"
        raise ModelError(
            "the file marks no noise layer, so the shift can't be told apart from other changes; export the network "
            "with `vsfix export`, or re-estimate every BatchNorm from data with --method exact --layers all"
        )
    if not layers:
        return "none", "no noise reaches a BatchNorm: there is nothing to repair"
    if config.method == "auto":
        return "paired", "the file says where the noise was, so the shift can be estimated from the difference it makes"
    return config.method, "asked for"


def _estimate(
    method: str,
    graph: gs.Graph,
    batches: Sequence[Batch],
    open_model: OpenModel,
    layers: Sequence[str],
    config: RepairConfig,
) -> dict[str, Estimate]:
    """The estimates of the chosen method."""
    if method == "paired":
        return paired(
            graph,
            batches,
            open_model,
            layers,
            seed=config.seed,
            repeats=config.repeats,
            max_memory=config.max_memory,
        )
    if method == "exact":
        return exact(graph, batches, open_model, layers, max_memory=config.max_memory)
    return {}


def _warnings(estimates: Mapping[str, Estimate], samples: int) -> tuple[str, ...]:
    """What makes the estimates doubtful."""
    if not estimates or samples >= FEW_SAMPLES:
        return ()
    return (f"the repair rests on {samples} samples; its statistics are more certain from {FEW_SAMPLES} on",)


def _statistics(graph: gs.Graph, repair: PassResult) -> dict[str, Array]:
    """The running statistics of the BatchNorms that were repaired, float32, by state_dict name."""
    repaired = {change.subject for change in repair.changed}
    arrays: dict[str, Array] = {}
    for batch_norm in require_batch_norms(graph):
        if batch_norm.name in repaired:
            arrays[f"{batch_norm.name}.running_mean"] = batch_norm.mean.astype(np.float32)
            arrays[f"{batch_norm.name}.running_var"] = batch_norm.variance.astype(np.float32)
    return arrays


def _outcomes(
    before: Inspection, after: Inspection, repair: PassResult, cleaned: Sequence[PassResult], fold: bool
) -> tuple[BatchNormOutcome, ...]:
    """One outcome for each BatchNorm."""
    actions = {change.subject: change.action for change in repair.changed}
    reasons = {kept.subject: kept.reason for kept in repair.kept}
    folds = cleaned[-1] if fold else PassResult("none")
    folded = {change.subject: change.action for change in folds.changed}
    unfolded = {kept.subject: kept.reason for kept in folds.kept}
    return tuple(
        BatchNormOutcome(
            before=row,
            after=new,
            repaired=row.name in actions,
            action=actions.get(row.name) or f"kept: {reasons.get(row.name, 'the estimate equals what is stored')}",
            folded=row.name in folded,
            fold_reason=folded.get(row.name) or unfolded.get(row.name, "folding was not asked for"),
        )
        for row, new in zip(before.rows, after.rows, strict=True)
    )


def _check_equal(
    repaired: onnx.ModelProto, final: onnx.ModelProto, batch: Batch, open_model: OpenModel
) -> float | None:
    """Compares the outputs of both graphs on one batch; returns the smallest SNR in dB, None where bit-equal."""
    with open_model(repaired) as reference, open_model(final) as candidate:
        expected, found = reference.run(batch), candidate.run(batch)
    worst = min(compare_tensors(*_comparable(expected[name], found[name])).snr_db for name in expected)
    half_types = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    half = any(tensor.data_type in half_types for tensor in repaired.graph.initializer)
    wanted = MIN_FOLD_SNR_DB_HALF if half else MIN_FOLD_SNR_DB
    if not worst >= wanted:
        raise CheckFailedError(
            f"the folded graph departs from the repaired one (SNR {worst:.1f} dB, wanted {wanted:.0f}): "
            "nothing is written; try --no-fold"
        )
    return None if np.isinf(worst) else worst


def _comparable(expected: Array, found: Array) -> tuple[Array, Array]:
    """Both with a batch axis; where both hold the same infinity or NaN, there is nothing to compare."""
    expected, found = np.atleast_1d(expected), np.atleast_1d(found)
    if expected.dtype.kind != "f" or expected.shape != found.shape:
        return expected, found
    same = ~np.isfinite(expected) & ((expected == found) | (np.isnan(expected) & np.isnan(found)))
    return np.where(same, 0, expected), np.where(same, 0, found)
