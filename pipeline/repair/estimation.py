"""The estimate of a repair, and how it is written: toward the noise-averaged network, or by a method of re-estimation.

`estimate` changes nothing; `write` puts what was found into a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import DataError, ModelError, UncomparableError
from vsfix.graph_passes.estimators.analytic import analytic
from vsfix.graph_passes.estimators.exact import exact
from vsfix.graph_passes.estimators.paired import PairedConfig, paired
from vsfix.graph_passes.estimators.repair_statistics import RepairStatistics
from vsfix.graph_passes.ir.graph_pass import PassResult, Skipped
from vsfix.graph_passes.ir.runtime import OpenModel
from vsfix.graph_passes.noise_average.nearness import AS_TRAINED
from vsfix.graph_passes.statistics.batches import Batch, count_samples, first_samples, prescribed_batch_size
from vsfix.graph_passes.statistics.estimate import Estimate
from vsfix.graph_passes.statistics.moments import Moments
from vsfix.pipeline.inspection.fault import RE_ESTIMATED, FaultKind, find_fault
from vsfix.pipeline.inspection.inspection import Inspection, inspect_graph, look_at
from vsfix.pipeline.inspection.noise_study import NoiseStudy
from vsfix.pipeline.inspection.preparation import PreparedModel, has_noise

from .averaging import UNDER_NOISE, Averaging, average_repair
from .candidates import CandidateRow, candidate_row
from .label_judge import LabelJudge
from .made_inputs import NO_USER_DATA, MadeInputs, make_inputs
from .plan import RepairPlan, choose_layers, is_of_all
from .repair_config import AVERAGING, RepairConfig

STUDIED_SAMPLES = 128  # of a set that may be the whole training set; F holds its outputs in memory
NO_ESTIMATE = "no estimate was made"
JUDGED_SAMPLES = 256  # enough to tell a variance within a few percent


@dataclass(frozen=True)
class Found:
    """The parameters to be written, and the evidence.

    Attributes:
        method: what is done in the end: the name of a candidate, a method, or `none`.
        reason: why.
        data: what it rests on, in words.
        samples: how many of them, at most.
        judges: the samples on which statistics are compared before and after.
        before: the graph as it is.
        estimates: of a method of re-estimation, by the name of the BatchNorm.
        reasons: why a BatchNorm keeps what it stores, by its name.
        averaging: what the averaged network says; None where no noise is known or nothing ran.
        moments_after: of every BatchNorm input of what is written, by the name of the BatchNorm; None where they are
            to be measured.
        warnings: what a person should know.
    """

    method: str
    reason: str
    data: str
    samples: int
    judges: Sequence[Batch]
    before: Inspection
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    averaging: Averaging | None = None
    moments_after: Mapping[str, Moments] | None = None
    warnings: tuple[str, ...] = ()

    def write(self, graph: gs.Graph) -> PassResult:
        """Writes what was found into a graph; names what changed, and why the other BatchNorms did not.

        Args:
            graph: a copy of the one that it was found for; edited in place.

        Raises:
            ModelError: a parameter that is not finite in its type.
        """
        if self.estimates:
            return RepairStatistics(self.estimates, self.reasons)(graph)
        changes = self.averaging.write(graph) if self.averaging is not None and self.method != "none" else ()
        changed = {change.subject for change in changes}
        names = [row.name for row in self.before.rows if row.name not in changed]
        return PassResult(
            "write parameters", changes, tuple(Skipped(name, self.reasons.get(name, NO_ESTIMATE)) for name in names)
        )


def estimate(
    plan: RepairPlan,
    prepared: PreparedModel,
    batches: Sequence[Batch],
    open_model: OpenModel,
    config: RepairConfig,
    *,
    judged_on: Sequence[Batch] | None = None,
    judge: LabelJudge | None = None,
) -> Found:
    """Finds what the plan wants to be written; nothing is changed.

    Args:
        plan: says how.
        prepared: the model, the noise of the plan marked.
        batches: the user's data; where it is empty and the method runs anything, inputs are made.
        open_model: the runtime.
        config: how to repair.
        judged_on: the samples on which statistics are compared before and after; the first part of the data where not
            given.
        judge: labelled data that chooses among the candidates.

    Raises:
        DataError: data that can't carry an estimate.
        CheckFailedError: statistics or data that no repair can rest on.
    """
    made = make_inputs(prepared, config) if not batches and plan.method not in ("none", "analytic") else None
    basis = _Basis(prepared, batches if made is None else made.batches, open_model, config, judged_on, made, judge)
    if plan.method == "none":
        judges, before = basis.look()
        reasons = dict.fromkeys((row.name for row in before.rows), plan.reason)
        return Found("none", plan.reason, "nothing was estimated", 0, judges, before, reasons=reasons)
    if plan.method in AVERAGING:
        try:
            return _toward_average(plan, basis)
        except UncomparableError as error:
            if config.method != "auto" or not prepared.noise_map.reached:
                raise
            doubt = f"{error}: the statistics are re-estimated instead (paired)"
            reason = f"nothing can be averaged over the noise: {error}"
            plan = replace(plan, method="paired", reason=reason)
            found = _re_estimate(plan, basis)
            return replace(found, warnings=(doubt, *found.warnings))
    if is_of_all(plan.method, prepared, config):
        try:
            return _as_trained(plan, basis)
        except UncomparableError:  # which is said below
            pass
    return _re_estimate(plan, basis)


@dataclass(frozen=True)
class _Basis:
    """The arguments of `estimate`, with the inputs that were made where there was no data."""

    prepared: PreparedModel
    batches: Sequence[Batch]
    open_model: OpenModel
    config: RepairConfig
    judged_on: Sequence[Batch] | None
    made: MadeInputs | None
    judge: LabelJudge | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings about the inputs."""
        return self.made.warnings if self.made is not None else ()

    def first(self, count: int = JUDGED_SAMPLES) -> list[Batch]:
        """The samples on which statistics, or outputs, are compared."""
        return first_samples(self.batches, count, whole=prescribed_batch_size(self.prepared.graph) is not None)

    def look(self) -> tuple[Sequence[Batch], Inspection]:
        """The samples on which statistics are compared, and the graph as it is on those."""
        judges = self.judged_on or self.first()
        return judges, inspect_graph(self.prepared.graph, judges, self.open_model)

    def study(self) -> tuple[NoiseStudy | None, tuple[str, ...]]:
        """F, where noise is known and something ran; or why it is unavailable."""
        batches, graph, config = self.first(STUDIED_SAMPLES), self.prepared.graph, self.config
        if not batches or not has_noise(graph):
            return None, ()
        try:
            kinds, limit = config.output_kinds, config.max_memory
            return NoiseStudy.of(graph, batches, self.open_model, config.seed, kinds, limit), ()
        except (DataError, ModelError) as error:
            return None, (f"how far the file is from its noise-averaged network is unknown: {error}",)


@dataclass(frozen=True)
class Estimation:
    """The statistics that a method of re-estimation found, and what they rest on.

    Attributes:
        estimates: by the name of the BatchNorm.
        reasons: why a BatchNorm that was asked for has none, by its name.
        data: what it rests on, in words.
        warnings: what a person should know.
    """

    estimates: Mapping[str, Estimate]
    reasons: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """The samples that the estimates took, at most."""
        return max((estimate.samples for estimate in self.estimates.values()), default=0)


def _toward_average(plan: RepairPlan, basis: _Basis, statistics_on: Sequence[Batch] = ()) -> Found:
    """The estimate that brings the network to its noise-averaged one; see `average_repair`."""
    prepared = basis.prepared
    averaging = average_repair(
        prepared, basis.batches, basis.open_model, basis.config, basis.judge, statistics_on=statistics_on
    )
    moments_after: Mapping[str, Moments] | None = None
    if basis.judged_on:
        judges, before = basis.look()
    else:  # everything ran already
        judges, moments_after = basis.first(), averaging.moments_after
        before = look_at(prepared.graph, averaging.severity.samples, averaging.moments_before)
    reached = prepared.noise_map.reached
    reasons = {
        row.name: averaging.reason or ("its fit gains nothing" if row.name in reached else "no noise reaches it")
        for row in before.rows
    }
    data = basis.made.data if basis.made is not None else f"{averaging.severity.samples} samples of the data"
    method = averaging.chosen if averaging.chosen != AS_TRAINED else UNDER_NOISE
    return Found(
        method=method if averaging.writes else "none",
        reason=averaging.reason or plan.reason + ("" if basis.judge is None else "; the labels chose"),
        data=data if averaging.writes else "nothing was changed",
        samples=averaging.severity.samples,
        judges=judges,
        before=before,
        reasons=reasons,
        averaging=averaging,
        moments_after=moments_after,
        warnings=(*basis.warnings, *averaging.warnings),
    )


def _as_trained(plan: RepairPlan, basis: _Basis) -> Found:
    """The statistics that training would have left, from all of the data, and then the match to their average."""
    few, config = basis.first(), replace(basis.config, method="auto")
    on_few = replace(basis, batches=few, config=config, judged_on=basis.judged_on or few)
    found = _toward_average(plan, on_few, basis.batches)
    total = count_samples(basis.batches)
    doubts = []
    if basis.made is not None:
        doubts.append("all statistics were re-estimated from inputs that were made from those of the file; give --data")
    elif total < RE_ESTIMATED:
        doubts.append(f"all statistics were re-estimated from {total} samples; give {RE_ESTIMATED} or more, best all")
    else:
        graph, limit = basis.prepared.graph, config.max_memory
        fault = find_fault(graph, few, basis.open_model, seed=config.seed, max_memory=limit)
        if fault is not None and fault.kind is FaultKind.INPUT:
            doubts.append(f"if the statistics that were replaced were right, {fault.description}")
    data = f"statistics with the noise on from {total} samples, then {found.data}"
    return replace(found, data=data, samples=total, warnings=(*found.warnings, *doubts))


def _re_estimate(plan: RepairPlan, basis: _Basis) -> Found:
    """The estimate of a method of re-estimation, and how far that is from the noise-averaged network."""
    study, trouble = basis.study()
    judges, before, is_same = _before_estimation(basis, study)
    layers, reasons = choose_layers(basis.prepared.graph, basis.config.layers)
    estimation = estimate_statistics(
        plan.method, basis.prepared, basis.batches, basis.open_model, layers, basis.config, basis.made
    )
    averaging, moved = _judge_statistics(study, estimation.estimates, plan.method, basis.config, basis.judge)
    return Found(
        method=plan.method,
        reason=plan.reason,
        data=estimation.data,
        samples=estimation.samples,
        judges=judges,
        before=before,
        estimates=estimation.estimates,
        reasons={**reasons, **estimation.reasons},
        averaging=averaging,
        moments_after=averaging.moments_after if averaging is not None and is_same else None,
        warnings=(*basis.warnings, *estimation.warnings, *trouble, *moved),
    )


def _before_estimation(basis: _Basis, study: NoiseStudy | None) -> tuple[Sequence[Batch], Inspection, bool]:
    """The samples that judge, the graph as it is on those, and whether they are the ones that were studied."""
    if study is None or basis.judged_on or count_samples(basis.batches) != len(study.samples):
        return (*basis.look(), False)
    return basis.first(), look_at(basis.prepared.graph, len(study.samples), study.moments_off), True


def estimate_statistics(
    method: str,
    prepared: PreparedModel,
    batches: Sequence[Batch],
    open_model: OpenModel,
    layers: Sequence[str],
    config: RepairConfig,
    made: MadeInputs | None = None,
) -> Estimation:
    """Runs one method.

    Args:
        method: `paired`, `exact` or `analytic`.
        prepared: the model, its noise marked.
        batches: the data; for `analytic` it may be empty.
        open_model: the runtime.
        layers: names of the BatchNorms to estimate.
        config: how to run.
        made: what the data is where the user gave none.

    Raises:
        DataError: data that can't carry an estimate.
    """
    if method == "analytic":
        return _by_closed_forms(prepared, layers)
    graph = prepared.graph
    if method == "paired":
        precision = 0.0 if made is not None else config.max_interval_width
        how = PairedConfig(config.seed, config.repeats, precision, config.max_memory)
        estimates = paired(graph, batches, open_model, layers, how)
    else:
        estimates = exact(graph, batches, open_model, layers, max_memory=config.max_memory)
    found = Estimation(estimates)
    return replace(found, data=made.data if made is not None else f"{found.samples} samples of the data")


def _by_closed_forms(prepared: PreparedModel, layers: Sequence[str]) -> Estimation:
    """The closed forms; what they can't see is said, for a network that is half repaired may be worse than before."""
    closed, reasons = analytic(prepared.graph, layers)
    warnings: tuple[str, ...] = ()
    if reasons:
        warnings = (
            f"the closed forms say nothing of {len(reasons)} BatchNorms that noise reaches too; those keep statistics "
            "that no longer fit, which can cost more than it brings: take match or paired",
        )
    return Estimation(closed, reasons, NO_USER_DATA + "closed forms", warnings)


def _judge_statistics(
    study: NoiseStudy | None,
    estimates: Mapping[str, Estimate],
    method: str,
    config: RepairConfig,
    judge: LabelJudge | None,
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
    graph = study.graph.copy()
    RepairStatistics(estimates, {})(graph)
    run = study.run(graph)
    rows: tuple[CandidateRow, ...] = (
        candidate_row(AS_TRAINED, study.outputs, study),
        candidate_row(method, run.outputs, study),
    )
    after = study.reference.severity(run.outputs, config.seed)
    averaging = Averaging(
        severity=study.severity,
        before=study.severity,
        after=after,
        judges=len(study.samples),
        candidates=rows,
        chosen=method,
        outputs=study.output_lines(),
        layers=study.layer_rows(run.distances),
        moments_after=run.moments,
    )
    if rows[1].low <= 0:  # not farther by more than chance
        return averaging, ()
    warning = (
        f"--method {method} moves the file away from its noise-averaged network: R {study.severity.ratio:.2f} -> "
        f"{after.ratio:.2f}; where the size of the outputs matters that can cost much: take --method match"
        + (", or check with --eval-data" if judge is None else "")
    )
    return averaging, (warning,)
