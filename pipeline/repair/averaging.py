"""The repair toward the noise-averaged network: the candidates, their distance to it, and the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_modules
from vsfix.graph_passes.errors import CheckFailedError, DataError, InputError
from vsfix.graph_passes.estimators.repair_statistics import RepairStatistics
from vsfix.graph_passes.estimators.units import FoundParameters, find_units, write_parameters
from vsfix.graph_passes.io.model_file import export_model
from vsfix.graph_passes.ir.graph_pass import Change
from vsfix.graph_passes.ir.runtime import Array, Float64Array, OpenModel
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, as_measured, measure
from vsfix.graph_passes.noise.analysis import analyse_noise
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.graph_passes.noise_average.nearness import AS_TRAINED, LEAST_JUDGES, MATCH, rows_of
from vsfix.graph_passes.noise_average.samples import SampleSet, held_out_rows
from vsfix.graph_passes.noise_average.severity import Severity
from vsfix.graph_passes.noise_average.stored_statistics import StoredAgainstNoisy
from vsfix.graph_passes.precision.typed_batch_norm import check_half_batch_norms
from vsfix.graph_passes.precision.value_scan import require_finite_values
from vsfix.graph_passes.statistics.batches import Batch, prescribed_batch_size
from vsfix.graph_passes.statistics.estimate import Estimate
from vsfix.graph_passes.statistics.moments import Moments
from vsfix.pipeline.inspection.fault import RE_ESTIMATED, Fault, FaultKind, find_fault
from vsfix.pipeline.inspection.noise_study import FEW, LayerRow, NoiseStudy
from vsfix.pipeline.inspection.preparation import PreparedModel

from .candidates import (
    CandidateRow,
    candidate_row,
    choose_by_labels,
    fitted_to_others,
    matched,
    nearest,
    not_better,
    not_nearer,
    re_estimates,
)
from .label_judge import LabelJudge, cross_fitted
from .repair_config import RepairConfig

UNDER_NOISE = "re-estimated under the noise"
Statistics = tuple[Float64Array, Float64Array]


@dataclass(frozen=True)
class Averaging:
    """The distance of a file from its averaged network, and the parameters that bring it there.

    Attributes:
        severity: R of the file as given, on all samples.
        after: R of what is written, on the samples that judge; None where nothing is.
        before: R of the file as given on the same samples.
        judges: how many those are.
        candidates: every one that was tried, the file as given first.
        chosen: the name of the one that is taken.
        outputs: how each output is read, one line each.
        layers: of every unit, in the order of the graph.
        parameters: to be written, by the name of the unit; empty where the file stays as it is.
        shapes: of the tensors, from which the units of a graph follow.
        statistics: mean and variance under the noise, to be written first, by the name of the BatchNorm; empty where
            those of the file are true.
        reason: why nothing is written; empty where something is.
        warnings: what a person should know.
        estimates: statistics to be written instead of `parameters`, where labels chose a method of re-estimation.
        moments_before: of every BatchNorm input of the file as given with the noise off, by the name of the BatchNorm.
        moments_after: the same of what is written.
        cross_fitted: the mean score that the choice by labels reaches on samples that had no part in it; None without.
    """

    severity: Severity
    after: Severity | None
    before: Severity | None
    judges: int
    candidates: tuple[CandidateRow, ...]
    chosen: str
    outputs: tuple[str, ...]
    layers: tuple[LayerRow, ...] = ()
    parameters: Mapping[str, FoundParameters] = field(default_factory=dict, repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    statistics: Mapping[str, Statistics] = field(default_factory=dict, repr=False)
    reason: str = ""
    warnings: tuple[str, ...] = ()
    estimates: Mapping[str, Estimate] = field(default_factory=dict, repr=False)
    moments_before: Mapping[str, Moments] = field(default_factory=dict, repr=False)
    moments_after: Mapping[str, Moments] = field(default_factory=dict, repr=False)
    cross_fitted: float | None = None

    @property
    def writes(self) -> bool:
        """Whether anything is to be written."""
        return bool(self.parameters or self.estimates or self.statistics)

    def averaged(self, graph: gs.Graph) -> gs.Graph:
        """The graph whose average over its noise F is: the one as given, with statistics that are true under it."""
        copy: gs.Graph = graph.copy()
        _write_statistics(copy, self.statistics)
        return copy

    def write(self, graph: gs.Graph) -> tuple[Change, ...]:
        """Writes what was found into a copy of the graph that it was found for; names what changed."""
        _write_statistics(graph, self.statistics)
        if self.estimates:
            written = RepairStatistics(self.estimates, {})(graph).changed
        else:
            written = write_parameters(graph, find_units(graph, self.shapes), self.parameters)
        names = {change.subject for change in written}
        earlier = [Change(name, UNDER_NOISE) for name in self.statistics if name not in names]
        return (*earlier, *written)


def average_repair(
    prepared: PreparedModel,
    batches: Sequence[Batch],
    open_model: OpenModel,
    config: RepairConfig,
    judge: LabelJudge | None = None,
    *,
    statistics_on: Sequence[Batch] = (),
) -> Averaging:
    """Finds the parameters that bring a network to its noise-averaged one.

    Args:
        prepared: the model, its noise marked; not changed.
        batches: the calibration set.
        open_model: the runtime.
        config: how to repair.
        judge: labelled data; where it is given, methods of re-estimation are tried too, and the labels choose.
        statistics_on: from which all are re-estimated under the noise first; empty for those that are wrong alone.

    Raises:
        DataError: too few samples, outputs that are not finite, or noise that changes nothing.
        CheckFailedError: the stored statistics are wrong under the noise, and the samples are too few to correct that.
    """
    if statistics_on:
        statistics = _under_noise(prepared.graph, statistics_on, open_model, config)
        study = _study(_with_statistics(prepared.graph, statistics), batches, open_model, config)
        return _repaired(prepared, study, statistics, study.moments_off, _sample_warnings(study.samples), config, judge)
    is_enough = config.method == "auto" and judge is None
    study = _study(prepared.graph, batches, open_model, config, may_end_early=is_enough)
    warnings = _sample_warnings(study.samples) + (study.contradiction() if config.noise else ())
    moments_before = study.moments_off
    wrong = [row for row in study.stored if row.differs]
    if not wrong:
        found = _repaired(prepared, study, {}, moments_before, warnings, config, judge)
        return found if found.writes else replace(found, warnings=(*found.warnings, *_beside(study, config)))
    fault = _fault(study, config)
    if fault is not None and fault.kind is FaultKind.INPUT:
        raise CheckFailedError(f"refused: {fault.sentence}; no model is written")
    _require_enough(wrong, len(study.samples))
    statistics = _under_noise(prepared.graph, study.samples.batches, open_model, config)
    del study  # two of them are never held
    study = _study(_with_statistics(prepared.graph, statistics), batches, open_model, config)
    warnings += _statistics_warnings(wrong, len(statistics))
    return _repaired(prepared, study, statistics, moments_before, warnings, config, judge)


def _fault(study: NoiseStudy, config: RepairConfig) -> Fault | None:
    """The fault beside the noise."""
    batches, residuals = study.samples.batches, study.residuals
    return find_fault(study.graph, batches, study.open_model, residuals, seed=config.seed, max_memory=config.max_memory)


def _beside(study: NoiseStudy, config: RepairConfig) -> tuple[str, ...]:
    """The fault of a file that stays as it is, where noise can't be its reason, as `vsfix inspect` names it."""
    fault = _fault(study, config)
    return (fault.sentence,) if fault is not None and fault.is_beyond(analyse_noise(study.graph).reached) else ()


def _repaired(
    prepared: PreparedModel,
    study: NoiseStudy,
    statistics: Mapping[str, Statistics],
    moments_before: Mapping[str, Moments],
    warnings: tuple[str, ...],
    config: RepairConfig,
    judge: LabelJudge | None,
) -> Averaging:
    """The parameters for a graph whose statistics are true under its noise, or were written so: see `Averaging`."""
    plain = Averaging(
        severity=study.severity,
        after=None,
        before=None,
        judges=0,
        candidates=(),
        chosen=AS_TRAINED,
        outputs=study.output_lines(),
        shapes=study.average.shapes,
        statistics=statistics,
        warnings=warnings,
        moments_before=moments_before,
        moments_after=study.moments_off,
    )
    if study.severity.is_healthy and config.method == "auto" and judge is None:
        return replace(plain, reason=_healthy(study.severity), warnings=(*warnings, *study.open_question()))
    if not study.units:
        return replace(plain, reason="no scale and shift downstream of the noise is free: nothing can be matched")
    found = _choose(plain, study, prepared, config, judge)
    if not statistics or not found.candidates:
        return found
    # What the candidates were held against is no longer the file as given.
    first, *others = found.candidates
    return replace(found, candidates=(replace(first, name=UNDER_NOISE), *others))


def _study(
    graph: gs.Graph,
    batches: Sequence[Batch],
    open_model: OpenModel,
    config: RepairConfig,
    *,
    may_end_early: bool = False,
) -> NoiseStudy:
    """F, and the units whose names match `--layers`."""
    kinds, memory = config.output_kinds, config.max_memory
    try:
        study = NoiseStudy.of(graph, batches, open_model, config.seed, kinds, memory, may_end_early=may_end_early)
    except DataError:  # the weights may be to blame, not the data
        check_half_batch_norms(graph)
        require_finite_values(graph)
        raise
    if config.layers in ("auto", "all"):
        return study
    units = tuple(unit for unit in study.units if fnmatchcase(unit.name, config.layers))
    if not units:
        raise InputError(
            f"--layers '{config.layers}' matches no layer whose scale and shift are free; those are "
            f"{', '.join(unit.name for unit in study.units) or 'none'}"
        )
    return replace(study, units=units)


def _choose(
    plain: Averaging, study: NoiseStudy, prepared: PreparedModel, config: RepairConfig, judge: LabelJudge | None
) -> Averaging:
    """Tries the candidates, and takes one: by labels where there are some, else by the distance to F."""
    judges = held_out_rows(len(study.samples))
    is_cross_fitted = judges.sum() < LEAST_JUDGES
    if is_cross_fitted:
        # A graph that takes batches of one size can't be run on two thirds of its samples.
        is_whole = (prescribed_batch_size(study.graph) or 1) > 1
        if is_whole or len(study.samples) < LEAST_JUDGES:
            enough = 3 * LEAST_JUDGES if is_whole else FEW
            reason = f"{len(study.samples)} samples can't tell whether a repair is nearer; give {enough} or more"
            return replace(plain, reason=reason)
        judges = np.ones(len(study.samples), dtype=np.bool_)
    tried, warnings = matched(study, prepared, replace(config, refine=False) if is_cross_fitted else config)
    graphs = {name: study.written(parameters) for name, parameters in tried.items()}
    estimates = re_estimates(study, config) if judge is not None else {}
    for name, found in estimates.items():
        graphs[name] = study.graph.copy()
        RepairStatistics(found, {})(graphs[name])
    rows = [candidate_row(AS_TRAINED, study.outputs, study, judges)]
    outputs: dict[str, Mapping[str, Array]] = {}
    runs = {name: study.run(graph) for name, graph in graphs.items()}
    for name, run in runs.items():
        outputs[name] = run.outputs
        if is_cross_fitted and name == MATCH:
            outputs[name] = fitted_to_others(study, outputs[name], config)
        rows.append(candidate_row(name, outputs[name], study, judges))
    before = study.reference.rows(judges).severity(rows_of(study.outputs, judges), config.seed)
    tried_out = replace(
        plain,
        before=before,
        judges=int(judges.sum()),
        candidates=tuple(rows),
        warnings=(*plain.warnings, *warnings),
    )
    if judge is None:
        best = nearest(rows)
    else:
        tried_out, best = _by_labels(tried_out, {AS_TRAINED: study.graph, **graphs}, prepared, config, judge)
    if best == AS_TRAINED:
        return replace(
            tried_out,
            reason=not_nearer(rows) if judge is None else not_better(tried_out.candidates, judge.metric, judge.others),
        )
    after = study.reference.rows(judges).severity(rows_of(outputs[best], judges), config.seed)
    tried_out = replace(tried_out, warnings=(*tried_out.warnings, *_unjudged(study, judge)))
    layers = study.layer_rows(runs[best].distances)
    tried_out = replace(tried_out, after=after, chosen=best, moments_after=runs[best].moments, layers=layers)
    if best in estimates:
        return replace(tried_out, estimates=estimates[best])
    return replace(tried_out, parameters=study.with_moments(tried[best], runs[best].moments))


def _unjudged(study: NoiseStudy, judge: LabelJudge | None) -> tuple[str, ...]:
    """The note on outputs of which nothing tells whether they gain: R is of all, and one may pay for another."""
    names, how = list(study.reference.outputs), "labelled data tells (--eval-data)"
    open_ones = names if len(names) > 1 else []
    if judge is not None:
        open_ones = [name for name in names if name in judge.unjudged]
        how = "an array of its name in the labelled data tells"
    if not open_ones:
        return ()
    shown = " and ".join(f"'{name}'" for name in open_ones)
    gain = "gains" if len(open_ones) == 1 else "gain, each for itself,"
    return (f"whether {shown} {gain} is unknown, since R is of all outputs together; {how}",)


def _by_labels(
    averaging: Averaging,
    graphs: Mapping[str, gs.Graph],
    prepared: PreparedModel,
    config: RepairConfig,
    judge: LabelJudge,
) -> tuple[Averaging, str]:
    """The candidate that the labels choose, see `choose_by_labels`; the scores in the rows."""
    scores = {name: judge.all_scores(_deployed_model(graph, prepared)) for name, graph in graphs.items()}
    judged = {name: found[0] for name, found in scores.items()}
    rows = tuple(replace(row, score=float(judged[row.name].mean())) for row in averaging.candidates)
    scored = replace(averaging, candidates=rows, cross_fitted=float(cross_fitted(judged).mean()))
    is_enough = config.method == "auto" and averaging.severity.is_healthy
    return scored, choose_by_labels(rows, scores, is_enough=is_enough, may_leave=not judge.unjudged)


def _deployed_model(graph: gs.Graph, prepared: PreparedModel) -> onnx.ModelProto:
    """The model of a graph with its noise off."""
    copy = graph.copy()
    RemoveMarkers()(copy)
    return export_model(copy, prepared.source)


def _healthy(severity: Severity) -> str:
    """Why a healthy file stays as it is."""
    number = f"R = {severity.ratio:.2f} ({severity.low:.2f} to {severity.high:.2f}) is below {severity.bound}"
    if severity.is_open:
        return number
    return (
        f"{number}: without its noise the network computes what it was trained to, far within what one draw of the "
        "noise does"
    )


def _require_enough(wrong: Sequence[StoredAgainstNoisy], samples: int) -> None:
    """Refuses a file whose statistics are not true under its noise, where too few samples are there to correct that."""
    if samples >= RE_ESTIMATED:
        return
    first = wrong[0]
    raise CheckFailedError(
        f"refused: {len(wrong)} BatchNorms store other statistics than the network with its noise on shows, "
        f"'{first.name}' the first (variance off by a factor of {first.ratio:.2f}, mean by {first.offset:.2f} "
        "deviations): the noise is not the only fault. If the data is that of the training, preprocessed the same way, "
        f"give {RE_ESTIMATED} samples or more (--samples), and the statistics are re-estimated under the noise first; "
        "no model is written"
    )


def _under_noise(
    graph: gs.Graph, batches: Sequence[Batch], open_model: OpenModel, config: RepairConfig
) -> dict[str, Statistics]:
    """The statistics that every BatchNorm sees with the noise on, each downstream of corrected ones."""
    names = [batch_norm.name for batch_norm in find_modules(graph)]
    under_noise = MeasurementConfig(names, config.seed, max_memory=config.max_memory)
    found = measure(graph, batches, open_model, under_noise)
    return {module.name: as_measured(module, found[module.name]) for module in find_modules(graph)}


def _with_statistics(graph: gs.Graph, statistics: Mapping[str, Statistics]) -> gs.Graph:
    """A copy of a graph with other statistics."""
    copy: gs.Graph = graph.copy()
    _write_statistics(copy, statistics)
    return copy


def _write_statistics(graph: gs.Graph, statistics: Mapping[str, Statistics]) -> None:
    """Writes mean and variance by the name of the BatchNorm."""
    for module in find_modules(graph) if statistics else ():
        module.with_statistics(*statistics[module.name])


def _sample_warnings(samples: SampleSet) -> tuple[str, ...]:
    """The warning about so few samples, or about copies."""
    warnings = samples.warnings
    if len(samples) < FEW:
        few = f"the repair rests on {len(samples)} samples; give {FEW} or more, 32 are plenty for most networks"
        warnings = (few, *warnings)
    return warnings


def _statistics_warnings(wrong: Sequence[StoredAgainstNoisy], re_estimated: int) -> tuple[str, ...]:
    """The warning about statistics that were not true under the noise."""
    if not re_estimated:
        return ()
    first = wrong[0]
    return (
        f"the stored statistics were not those of the network with its noise on ('{first.name}': variance off by a "
        f"factor of {first.ratio:.2f}, mean by {first.offset:.2f} deviations): {re_estimated} BatchNorms were "
        "re-estimated under the noise first; that is right where the data is that of the training, preprocessed the "
        "same way",
    )
