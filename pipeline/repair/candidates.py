"""The candidates for deployment that are tried, and how far each is from the network with its noise on.

Also, on data without labels, how far what is written agrees with that network and with the file as given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_modules
from vsfix.graph_passes.errors import DataError, ModelError
from vsfix.graph_passes.estimators.exact import exact
from vsfix.graph_passes.estimators.matching import match
from vsfix.graph_passes.estimators.paired import PairedConfig, paired
from vsfix.graph_passes.estimators.unit_fit import MatchedUnit
from vsfix.graph_passes.estimators.units import FoundParameters
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.ir.runtime import Array, Float64Array, OpenModel
from vsfix.graph_passes.noise.analysis import analyse_noise
from vsfix.graph_passes.noise_average.nearness import AS_TRAINED, MATCH, REFINE, Candidate, judge_candidate
from vsfix.graph_passes.noise_average.noise_average import run_deployed
from vsfix.graph_passes.noise_average.samples import SampleSet
from vsfix.graph_passes.statistics.batches import Batch, prescribed_batch_size
from vsfix.graph_passes.statistics.estimate import Estimate
from vsfix.pipeline.comparison.agreement import Agreement, agreement, compared_outputs, measure_of, output_agreement
from vsfix.pipeline.comparison.metric import Metric
from vsfix.pipeline.comparison.score_difference import is_better, is_worse
from vsfix.pipeline.inspection.noise_study import FEW, MOST, NoiseStudy
from vsfix.pipeline.inspection.preparation import PreparedModel

from .refining import refine_units, refusal
from .repair_config import RepairConfig


@dataclass(frozen=True)
class CandidateRow(Candidate):
    """One candidate for the deployment of a file.

    Attributes:
        score: the mean on labelled data, the higher the better; None without.
    """

    score: float | None = None


def fitted_to_others(study: NoiseStudy, outputs: Mapping[str, Array], config: RepairConfig) -> dict[str, Array]:
    """The outputs of the match over each third of the samples, where it was fitted to the other two.

    With so few samples none can be spared to judge alone, and those that a fit has seen judge it too well.

    Args:
        study: F over all samples.
        outputs: of the match that was fitted to all of them, by name.
        config: how to repair.
    """
    found = {name: array.copy() for name, array in outputs.items()}
    thirds = np.arange(len(study.samples)) % 3
    chosen = {unit.name for unit in study.units}  # by --layers
    for third in range(3):
        others = NoiseStudy.of(
            study.graph, study.samples.rows(thirds != third).batches, study.open_model, config.seed, study.told
        )
        free = tuple(unit for unit in others.units if unit.name in chosen)
        parameters = {name: unit.parameters for name, unit in _match(replace(others, units=free), config).items()}
        fitted = run_deployed(study.written(parameters), study.samples, study.open_model).outputs
        for name, array in found.items():
            rows = np.repeat(thirds == third, len(array) // len(thirds))
            array[rows] = fitted[name][rows]
    return found


def _match(study: NoiseStudy, config: RepairConfig) -> dict[str, MatchedUnit]:
    """The parameters of the match, by the name of the unit."""
    return match(
        study.graph,
        study.units,
        study.targets,
        study.samples,
        study.average.shapes,
        study.open_model,
        config.max_memory,
    )


def matched(
    study: NoiseStudy, prepared: PreparedModel, config: RepairConfig
) -> tuple[dict[str, Mapping[str, FoundParameters]], tuple[str, ...]]:
    """The parameters of the match and of its refinement, by the name of the candidate; and warnings."""
    found = _match(study, config)
    tried: dict[str, Mapping[str, FoundParameters]] = {MATCH: {name: unit.parameters for name, unit in found.items()}}
    if (why := refusal(study, config)) is not None:
        return tried, (why,) if config.refine is not False else ()
    refined = refine_units(study, tried[MATCH], prepared, config)
    if isinstance(refined, str):
        return tried, (refined,)
    tried[REFINE] = refined
    return tried, ()


def re_estimates(study: NoiseStudy, config: RepairConfig) -> dict[str, Mapping[str, Estimate]]:
    """The statistics that methods of re-estimation find, by the name of the method."""
    reached = analyse_noise(study.graph).reached
    layers = [batch_norm.name for batch_norm in find_modules(study.graph) if batch_norm.name in reached]
    if not layers or len(study.samples) < FEW:
        return {}
    how = PairedConfig(config.seed, config.repeats, 0.0, config.max_memory)
    return {
        "paired": paired(study.graph, study.samples.batches, study.open_model, layers, how),
        "exact": exact(study.graph, study.samples.batches, study.open_model, layers, max_memory=config.max_memory),
    }


def candidate_row(
    name: str, outputs: Mapping[str, Array], study: NoiseStudy, judges: Array | None = None
) -> CandidateRow:
    """One candidate, by the samples that judge; by all where none are named."""
    if judges is None:
        judges = np.ones(len(study.samples), dtype=np.bool_)
    return CandidateRow(**vars(judge_candidate(name, outputs, study.reference, study.outputs, judges)))


def agreements(
    averaged: gs.Graph | None,
    given: gs.Graph,
    repaired: onnx.ModelProto,
    batches: Sequence[Batch],
    open_model: OpenModel,
    config: RepairConfig,
) -> tuple[Agreement, ...]:
    """How far each output of what is written agrees with that of the file as given, and both with F.

    Args:
        averaged: the graph whose average over its noise F is; None where F is unknown.
        given: the file as given, deployable.
        repaired: what stands for the file that is written.
        batches: any data.
        open_model: the runtime.
        config: the seed of the noise, and what outputs mean.

    Raises:
        DataError: outputs that are not finite, or none that can be compared.
    """
    prescribed = prescribed_batch_size(given)
    samples = SampleSet.of(batches, prescribed).without_copies(prescribed).first_of(MOST, prescribed)
    before = run_deployed(given, samples, open_model).outputs
    after = run_deployed(import_graph(repaired), samples, open_model).outputs
    kinds = compared_outputs(given, before, config.output_kinds)
    rows = {
        name: Agreement(
            name,
            measure_of(kind),
            len(samples),
            output_agreement(kind, before[name], after[name]),
        )
        for name, kind in kinds.items()
    }
    try:
        study = None if averaged is None else _average(averaged, samples, open_model, config)
    except (DataError, ModelError):  # on this data nothing can be averaged
        study = None
    if study is not None:
        as_given, written = study.reference.read(before), study.reference.read(after)
        for name, noisy in study.reference.outputs.items():
            rows[name] = replace(
                rows[name],
                given_average=agreement(noisy.kind, noisy.mean, as_given[name]),
                repaired_average=agreement(noisy.kind, noisy.mean, written[name]),
            )
    return tuple(rows.values())


def _average(graph: gs.Graph, samples: SampleSet, open_model: OpenModel, config: RepairConfig) -> NoiseStudy:
    """F on these samples."""
    return NoiseStudy.of(
        graph,
        samples.batches,
        open_model,
        config.seed,
        config.output_kinds,
        config.max_memory,
        needs_targets=False,
    )


def nearest(rows: Sequence[CandidateRow]) -> str:
    """The candidate that is nearest to F, where it is nearer than the file by more than chance; else the file."""
    nearer = [row for row in rows if row.is_nearer]
    return min(nearer, key=lambda row: row.severity).name if nearer else AS_TRAINED


def choose_by_labels(
    rows: Sequence[CandidateRow],
    scores: Mapping[str, Sequence[Float64Array]],
    *,
    is_enough: bool,
    may_leave: bool,
) -> str:
    """The candidate that scores best, where it is better than the file by more than chance.

    None is taken that makes another labelled output worse by more than chance. Where labels tell none from the file,
    the one that is nearest to F is taken, if its R says that it is needed and no label speaks against it.

    Args:
        rows: the candidates, the file first.
        scores: of each, by its name: by the metric, then of each other output that has labels.
        is_enough: whether the file needs no repair by its R.
        may_leave: whether labels judge every output; else none is taken that is farther from F than the file.
    """
    trained = scores[AS_TRAINED]
    farther = {row.name for row in rows if row.difference > 0}
    allowed = [
        name
        for name, found in scores.items()
        if not any(is_worse(before, after) for before, after in zip(trained[1:], found[1:], strict=True))
        and (may_leave or name not in farther)
    ]
    best = max(allowed, key=lambda name: float(scores[name][0].mean()), default=AS_TRAINED)
    if is_better(trained[0], scores[best][0], tried=len(scores) - 1):
        return best
    near = nearest([row for row in rows if row.name in allowed])
    return AS_TRAINED if is_enough or is_worse(trained[0], scores[near][0]) else near


def not_nearer(rows: Sequence[CandidateRow]) -> str:
    """Why no candidate was taken."""
    best = min(rows[1:], key=lambda row: row.severity, default=None)
    if best is None:
        return "no candidate could be made"
    return (
        f"no repair is nearer to the noise-averaged network than the file by more than chance: '{best.name}' has R "
        f"{best.severity:.2f}, the file {rows[0].severity:.2f}, on the samples that judge"
        + ("; more samples may tell" if best.severity < rows[0].severity else "")
    )


def not_better(rows: Sequence[CandidateRow], metric: Metric, others: Sequence[Metric] = ()) -> str:
    """Why labels left the file as it is; `others` are those of the other outputs that have labels."""
    best, given = max(rows[1:], key=lambda row: _score(row)), rows[0]
    unharmed = "".join(f", and no worse in {other.name} of '{other.output}'" for other in others)
    return (
        f"no candidate is better than the file on the labelled data by more than chance{unharmed}: the best, "
        f"'{best.name}', has {metric.text(_score(best))}, the file {metric.text(_score(given))}"
    )


def _score(row: CandidateRow) -> float:
    """The score on labels, the higher the better."""
    return -np.inf if row.score is None else row.score
