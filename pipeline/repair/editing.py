"""The step of a repair that changes parameters: toward the noise-averaged network, or by a method of re-estimation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_modules
from vsfix.graph_passes.errors import DataError, InputError, ModelError, UncomparableError
from vsfix.graph_passes.estimators.repair_statistics import RepairStatistics
from vsfix.graph_passes.ir.graph_pass import Kept, PassResult
from vsfix.graph_passes.ir.runtime import OpenModel
from vsfix.graph_passes.noise.analysis import analyse_noise
from vsfix.graph_passes.noise_average.noise_average import run_deployed
from vsfix.graph_passes.statistics.batches import Batch, first_samples, prescribed_batch_size
from vsfix.graph_passes.statistics.estimate import Estimate
from vsfix.pipeline.inspection.inspection import Inspection, inspect_graph
from vsfix.pipeline.inspection.noise_study import NoiseStudy
from vsfix.pipeline.inspection.preparation import PreparedModel, has_noise

from .averaging import UNDER_NOISE, Averaging, average_repair
from .candidates import AS_TRAINED, CandidateRow, candidate_row
from .estimation import estimate_statistics
from .label_judge import LabelJudge
from .made_inputs import make_inputs
from .method_choice import MethodChoice
from .repair_config import AVERAGING, RepairConfig

STUDIED_SAMPLES = 128  # of a set that may be the whole training set; F holds its outputs in memory
JUDGED_SAMPLES = 256  # enough to tell a variance within a few percent


@dataclass(frozen=True)
class Edited:
    """What was changed in the prepared graph, and the evidence.

    Attributes:
        method: what was done in the end: the name of a candidate, a method, or `none`.
        reason: why.
        data: what it rests on, in words.
        samples: how many of them, at most.
        batches: what it was run on.
        judges: the samples on which statistics are compared before and after.
        before: the graph before the change.
        changes: the units that changed, and those that did not with the reason.
        estimates: of a method of re-estimation, by the name of the BatchNorm.
        methods: what changed each BatchNorm, by its name.
        averaging: what the averaged network says; None where no noise is known or nothing ran.
        warnings: what a person should know.
    """

    method: str
    reason: str
    data: str
    samples: int
    batches: Sequence[Batch]
    judges: Sequence[Batch]
    before: Inspection
    changes: PassResult
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    averaging: Averaging | None = None
    warnings: tuple[str, ...] = ()


def edit_parameters(
    prepared: PreparedModel,
    choice: MethodChoice,
    batches: Sequence[Batch],
    open_model: OpenModel,
    config: RepairConfig,
    judged_on: Sequence[Batch] | None = None,
    judge: LabelJudge | None = None,
) -> Edited:
    """Changes the parameters of the prepared graph as the choice says.

    Args:
        prepared: the model; its graph is edited.
        choice: the method.
        batches: the user's data; where it is empty and the method runs anything, inputs are made.
        open_model: the runtime.
        config: how to repair.
        judged_on: the samples on which statistics are compared before and after; the first part of the data where not
            given.
        judge: labelled data that chooses among the candidates.
    """
    if choice.method == "none":
        judges = judged_on or _first(prepared, batches)
        before = inspect_graph(prepared.graph, judges, open_model)
        kept = tuple(Kept(row.name, choice.reason) for row in before.rows)
        return Edited(
            method="none",
            reason=choice.reason,
            data="nothing was estimated",
            samples=0,
            batches=batches,
            judges=judges,
            before=before,
            changes=PassResult("keep parameters", (), kept),
        )
    made = None
    if not batches and choice.method != "analytic":
        made = make_inputs(prepared, config)
        batches = made.batches
    judges = judged_on or _first(prepared, batches)
    before = inspect_graph(prepared.graph, judges, open_model)
    warnings = made.warnings if made is not None else ()
    made_of = made.data if made is not None else ""
    if choice.method in AVERAGING:
        try:
            return _toward_average(
                prepared, choice, batches, open_model, config, Basis(judges, before, made_of, warnings, judge)
            )
        except UncomparableError as error:
            if config.method != "auto" or not analyse_noise(prepared.graph).reached:
                raise
            warnings = (*warnings, f"{error}: the statistics are re-estimated instead (paired)")
            choice = replace(choice, method="paired", reason=f"nothing can be averaged over the noise: {error}")
    layers, reasons = choose_layers(prepared.graph, config.layers)
    study, trouble = _study(prepared.graph, _first(prepared, batches, STUDIED_SAMPLES), open_model, config)
    estimation = estimate_statistics(choice.method, prepared, batches, open_model, layers, config, made)
    changes = RepairStatistics(estimation.estimates, {**reasons, **estimation.reasons})(prepared.graph)
    averaging, moved = _judge_statistics(study, prepared.graph, choice.method, config, judge)
    return Edited(
        method=choice.method,
        reason=choice.reason,
        data=estimation.data,
        samples=estimation.samples,
        batches=batches,
        judges=judges,
        before=before,
        changes=changes,
        estimates=estimation.estimates,
        methods=estimation.methods,
        averaging=averaging,
        warnings=(*warnings, *estimation.warnings, *trouble, *moved),
    )


@dataclass(frozen=True)
class Basis:
    """What an edit rests on: attributes of `Edited`, `data` empty for the user's own, and the labelled data."""

    judges: Sequence[Batch]
    before: Inspection
    data: str
    warnings: tuple[str, ...]
    judge: LabelJudge | None


def choose_layers(graph: gs.Graph, layers: str) -> tuple[list[str], dict[str, str]]:
    """The BatchNorms to estimate, and the reason for each of the others.

    Raises:
        InputError: a glob that matches none.
    """
    names = [batch_norm.name for batch_norm in find_modules(graph)]
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


def _toward_average(
    prepared: PreparedModel,
    choice: MethodChoice,
    batches: Sequence[Batch],
    open_model: OpenModel,
    config: RepairConfig,
    basis: Basis,
) -> Edited:
    """Brings the network to its noise-averaged one."""
    averaging = average_repair(prepared, batches, open_model, config, basis.judge)
    changes = averaging.write(prepared.graph)
    changed = {change.subject for change in changes}
    reached = analyse_noise(prepared.graph).reached
    kept = tuple(
        Kept(row.name, averaging.reason or ("its fit gains nothing" if row.name in reached else "no noise reaches it"))
        for row in basis.before.rows
        if row.name not in changed
    )
    done = bool(changes)
    method = averaging.chosen if averaging.chosen != AS_TRAINED else UNDER_NOISE
    return Edited(
        method=method if done else "none",
        reason=averaging.reason or choice.reason + ("" if basis.judge is None else "; the labels chose"),
        data=(basis.data or f"{averaging.severity.samples} samples of the data") if done else "nothing was changed",
        samples=averaging.severity.samples,
        batches=batches,
        judges=basis.judges,
        before=basis.before,
        changes=PassResult("match", changes, kept),
        methods=dict.fromkeys(changed, method),
        averaging=averaging,
        warnings=(*basis.warnings, *averaging.warnings),
    )


def _first(prepared: PreparedModel, batches: Sequence[Batch], count: int = JUDGED_SAMPLES) -> list[Batch]:
    """The samples on which statistics, or outputs, are compared."""
    return first_samples(batches, count, whole=prescribed_batch_size(prepared.graph) is not None)


def _study(
    graph: gs.Graph, batches: Sequence[Batch], open_model: OpenModel, config: RepairConfig
) -> tuple[NoiseStudy | None, tuple[str, ...]]:
    """F, where noise is known and something ran; or why it can't be had."""
    if not batches or not has_noise(graph):
        return None, ()
    try:
        return NoiseStudy.of(graph.copy(), batches, open_model, config.seed, config.output_kinds, config.max_memory), ()
    except (DataError, ModelError) as error:
        return None, (f"how far the file is from its noise-averaged network is unknown: {error}",)


def _judge_statistics(
    study: NoiseStudy | None, graph: gs.Graph, method: str, config: RepairConfig, judge: LabelJudge | None
) -> tuple[Averaging | None, tuple[str, ...]]:
    """R before and after a method of re-estimation, and a warning where it leads away from F."""
    if study is None:
        return None, ()
    wrong = [row.name for row in study.stored if row.differs]
    if wrong:
        return None, (
            f"R is not known: {len(wrong)} BatchNorms store other statistics than the network with its noise on shows, "
            f"'{wrong[0]}' the first, so that its average is not that of the network that was trained",
        )
    outputs = run_deployed(graph, study.samples, study.open_model)
    rows: tuple[CandidateRow, ...] = (
        candidate_row(AS_TRAINED, study.outputs, study),
        candidate_row(method, outputs, study),
    )
    after = study.reference.severity(outputs, config.seed)
    averaging = Averaging(
        severity=study.severity,
        before=study.severity,
        after=after,
        judges=len(study.samples),
        candidates=rows,
        chosen=method,
        outputs=study.output_lines(),
        layers=study.layer_rows(graph),
    )
    if rows[1].low <= 0:  # not farther by more than chance
        return averaging, ()
    warning = (
        f"--method {method} moves the file away from its noise-averaged network: R {study.severity.ratio:.2f} -> "
        f"{after.ratio:.2f}; where the size of the outputs matters that can cost much: take --method match"
        + (", or check with --eval-data" if judge is None else "")
    )
    return averaging, (warning,)
