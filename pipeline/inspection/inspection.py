"""The inspection of each BatchNorm of a model: the noise that reaches it and the shift that it causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm, find_modules
from vsfix.graph_passes.errors import DataError, ModelError
from vsfix.graph_passes.io.model_file import read_metadata
from vsfix.graph_passes.ir.runtime import OpenModel
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, measure
from vsfix.graph_passes.noise.analysis import (
    NoiseMap,
    TracedPath,
    analyse_noise,
    traced_path,
)
from vsfix.graph_passes.noise.marker import REPAIR_KEY
from vsfix.graph_passes.noise_average.severity import Severity
from vsfix.graph_passes.noise_average.stored_statistics import StoredAgainstNoisy
from vsfix.graph_passes.noise_inference.claims import Claim
from vsfix.graph_passes.noise_inference.residuals import Residual
from vsfix.graph_passes.precision.value_scan import describe_error, doubtful_constants, scan_values
from vsfix.graph_passes.precision.weight_rounding import LIMITS
from vsfix.graph_passes.statistics.batches import Batch, count_samples, require_different_samples
from vsfix.graph_passes.statistics.moments import Moments

from .batch_norm_row import BatchNormRow, batch_norm_row
from .fault import Fault, find_fault, never_set
from .lost_noise import infer_lost_noise
from .noise_study import FEW, NoiseStudy
from .preparation import PreparedModel, prepare_model

_LARGEST_FP16 = LIMITS[onnx.TensorProto.FLOAT16][0]
NOT_SHOWN = (
    "the file marks no noise layer: either the network has none, or its export dropped them; `vsfix export` keeps "
    "them, and --data lets them be inferred from the statistics"
)
# A BatchNorm that no noise reaches and whose variance is off by this factor says that the data is not what it was
# trained on, or is not preprocessed as in training.
OTHER_DATA_VARIANCE_RATIO = 2.0
OTHER_DATA_OFFSET = 1.0
# The same of the first BatchNorm with noise in front: few samples and other noise move its shift by less.
OTHER_DATA_UNEXPLAINED = 4.0


@dataclass(frozen=True)
class Inspection:
    """The result of `vsfix inspect`.

    Attributes:
        rows: one for each BatchNorm, in the order of the graph.
        noise_sources: every noise layer, as `name dropout:0.5`.
        samples: how many samples the measured columns rest on; 0 without data.
        warnings: what a person should know before trusting the numbers.
        prepared: what would be changed to make the file deployable; the columns are those of the deployable graph.
        inferred: what the statistics say about noise that the file has lost; empty where nothing was inferred.
        defect: why the weights can't be deployed, repaired or not; empty where they can.
        route: the path of the noise to the BatchNorm that it shifts most; None where no noise reaches one.
        severity: R, how far the deployed network is from its noise-averaged one; None where no noise is known or
            nothing ran.
        outputs: how each output is read for that, one line each.
        stored: BatchNorms whose statistics are not those of the network with its noise on, in the order of the graph; R
            is that of a network that nobody trained where there are any.
        fault: what is wrong beside noise; None where nothing is.
        claims: the lost noise that was inferred, by kind of insertion point.
        question: what is to be said where no noise is certain and something is off all the same; empty elsewhere.
    """

    rows: tuple[BatchNormRow, ...]
    noise_sources: tuple[str, ...]
    samples: int
    warnings: tuple[str, ...]
    prepared: tuple[str, ...] = ()
    inferred: str = ""
    defect: str = ""
    route: TracedPath | None = None
    severity: Severity | None = None
    outputs: tuple[str, ...] = ()
    stored: tuple[StoredAgainstNoisy, ...] = ()
    fault: Fault | None = None
    claims: tuple[Claim, ...] = ()
    question: str = ""


@dataclass(frozen=True)
class InspectionConfig:
    """How to look at a model.

    Attributes:
        noise: noise that the file does not show, each as `NODE=KIND:VALUE`.
        output_kinds: what outputs mean, by name; the others are recognised.
        seed: of the noise.
    """

    noise: tuple[str, ...] = ()
    output_kinds: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0


def prepare(model: onnx.ModelProto, noise: Sequence[str] = ()) -> PreparedModel:
    """Prepares a model to be looked at.

    Args:
        model: a checked model.
        noise: noise that the file does not show, each as `NODE=KIND:VALUE`.

    Raises:
        ModelError, InputError: see `prepare_model`; no BatchNorm is left, since vsfix folded them all.
    """
    if REPAIR_KEY in read_metadata(model) and all(node.op_type != "BatchNormalization" for node in model.graph.node):
        raise ModelError("no BatchNorm is left to look at: vsfix folded them all when it wrote this file")
    return prepare_model(model, noise)


def inspect_model(
    model: onnx.ModelProto | PreparedModel,
    batches: Sequence[Batch],
    open_model: OpenModel,
    config: InspectionConfig | None = None,
    *,
    averaged_on: Sequence[Batch] = (),
) -> Inspection:
    """Looks at a model as it would be deployed; noise that the file has lost is inferred where there is data.

    Args:
        model: a checked model, or one that `prepare` has prepared with the noise of the config; not changed.
        batches: calibration data; may be empty, then nothing is measured.
        open_model: the runtime.
        config: how to look at it.
        averaged_on: what R rests on, so that it is that of a repair on the same
            samples; `batches` where not given.

    Raises:
        ModelError: neither a BatchNorm nor noise, or a BatchNorm that can't be read.
        InputError: noise or a meaning that fits nothing.
        DataError: data that is not finite, or copies of a few samples.
    """
    config = config or InspectionConfig()
    require_different_samples(batches)
    prepared = model if isinstance(model, PreparedModel) else prepare(model, config.noise)
    inferred, warnings = "", prepared.warnings
    if not config.noise and prepared.repaired and prepared.noise_map.sources:
        prepared = prepared.without_noise()  # what the noise would make of it is not what was trained
        again = "vsfix repaired this file already: the noise that it marks is that of the training before"
        warnings = (*warnings, again)
    judges = averaged_on or batches
    claims: tuple[Claim, ...] = ()
    fault, question = None, ""
    has_data = bool(batches) and bool(find_modules(prepared.graph))
    real = measure(prepared.graph, batches, open_model, MeasurementConfig()) if has_data else {}
    if prepared.is_lost:
        if batches:
            lost = infer_lost_noise(
                prepared, batches, open_model, max_memory=DEFAULT_MAX_MEMORY, measured=real if has_data else None
            )
            prepared = prepared.with_noise(lost.noise)
            inferred = lost.sentence
            warnings = (*warnings, *lost.doubts)
            claims, fault, question = lost.inference.claims, lost.fault, lost.question
        else:
            warnings = (*warnings, NOT_SHOWN)
    if not batches:
        question = never_set(prepared.graph)
    looked_at = look_at(prepared.graph, count_samples(batches), real)
    found, study = _with_severity(looked_at, prepared.graph, judges, open_model, config)
    if not inferred:
        residuals = None if study is None else study.residuals
        samples = batches if study is None else study.samples.batches
        fault = _fault_beside_noise(prepared.graph, samples, open_model, found, residuals)
    return replace(
        found,
        fault=fault,
        claims=claims,
        question=question,
        warnings=(*warnings, *found.warnings, *doubtful_constants(prepared.graph)),
        prepared=prepared.changes,
        inferred=inferred,
        defect=describe_error(scan_values(prepared.graph)) or "",
    )


def _fault_beside_noise(
    graph: gs.Graph,
    batches: Sequence[Batch],
    open_model: OpenModel,
    found: Inspection,
    residuals: Mapping[str, Residual] | None,
) -> Fault | None:
    """The faults beside the noise that a file shows; of what hinders their search only that which makes R doubtful."""
    fault = find_fault(graph, batches, open_model, residuals)
    reached = {row.name for row in found.rows if row.noise}
    return fault if fault is not None and (found.stored or fault.is_beyond(reached)) else None


def _with_severity(
    found: Inspection, graph: gs.Graph, batches: Sequence[Batch], open_model: OpenModel, config: InspectionConfig
) -> tuple[Inspection, NoiseStudy | None]:
    """Adds R where noise is known that can be switched on; a warning says why it is unavailable."""
    if not batches or not any(not source.owner for source in analyse_noise(graph).sources):
        return found, None
    try:
        study = NoiseStudy.of(
            graph, batches, open_model, config.seed, config.output_kinds, needs_targets=False, may_end_early=True
        )
    except (DataError, ModelError) as error:
        unknown = f"how far the file is from its noise-averaged network is unknown: {error}"
        return replace(found, warnings=(*found.warnings, unknown)), None
    contradiction = study.contradiction() if config.noise else ()
    few = () if len(study.samples) >= FEW else (f"R rests on {len(study.samples)} samples; give {FEW} or more",)
    seen = replace(
        found,
        warnings=(*found.warnings, *study.samples.warnings, *few, *contradiction, *study.open_question()),
        severity=study.severity,
        outputs=study.output_lines(),
        stored=tuple(row for row in study.stored if row.differs),
    )
    return seen, study


def inspect_graph(graph: gs.Graph, batches: Sequence[Batch], open_model: OpenModel) -> Inspection:
    """Looks at every BatchNorm of a graph and changes nothing.

    Args:
        graph: the model.
        batches: calibration data; may be empty, then nothing is measured.
        open_model: the runtime.

    Raises:
        ModelError: no BatchNorm, or one that can't be read.
        DataError: data that is not finite.
    """
    measured = measure(graph, batches, open_model, MeasurementConfig()) if batches and find_modules(graph) else {}
    return look_at(graph, count_samples(batches), measured)


def look_at(graph: gs.Graph, samples: int, real: Mapping[str, Moments]) -> Inspection:
    """The rows of all BatchNorms of a graph, from what was measured already.

    Args:
        graph: not changed.
        samples: how many the moments rest on.
        real: moments of the BatchNorm inputs with the noise off, by the name of the BatchNorm; empty for none.
    """
    batch_norms = find_modules(graph)
    noise_map = analyse_noise(graph)
    rows = tuple(batch_norm_row(batch_norm, noise_map.reaching[batch_norm.name], real) for batch_norm in batch_norms)
    return Inspection(
        rows,
        _sources(noise_map),
        samples,
        _warnings(rows) + _hidden(noise_map),
        route=_worst_path(graph, batch_norms, noise_map, rows),
    )


def _worst_path(
    graph: gs.Graph, batch_norms: Sequence[BatchNorm], noise_map: NoiseMap, rows: Sequence[BatchNormRow]
) -> TracedPath | None:
    """The path of the noise to the BatchNorm that is off most, as far as it is measured or predicted."""
    reached = [pair for pair in zip(rows, batch_norms, strict=True) if pair[0].noise]
    if not reached:
        return None
    _, worst = max(reached, key=lambda pair: pair[0].known_variance_ratio or 0.0)
    return traced_path(graph, worst, noise_map.reaching[worst.name][0])


def _sources(noise_map: NoiseMap) -> tuple[str, ...]:
    """Every source in one line."""
    return tuple(f"{source.name} {source.noise}" for source in noise_map.sources)


def _warnings(rows: Sequence[BatchNormRow]) -> tuple[str, ...]:
    """The caveats of the numbers."""
    warnings = []
    noise_free = [row for row in rows if not row.noise and row.mismatch is not None]
    if noise_free and noise_free[0].mismatch is not None and noise_free[0].mismatch > OTHER_DATA_VARIANCE_RATIO:
        warnings.append(
            f"BatchNorm '{noise_free[0].name}' sees no noise, yet its stored variance is off by a factor of "
            f"{noise_free[0].mismatch:.1f} on this data: is it the data of the training, preprocessed the same way?"
        )
    mute = [row.name for row in rows if row.mean_offset is not None and row.measured_shift is None]
    if mute:
        warnings.append(
            f"no channel of {len(mute)} BatchNorms varies on this data, '{mute[0]}' the first: it tells nothing"
        )
    first = rows[0] if rows else None
    if first is not None and first.noise and (first.unexplained or 1.0) > OTHER_DATA_UNEXPLAINED:
        warnings.append(
            f"the variance that BatchNorm '{first.name}' sees on this data is off by a factor of "
            f"{first.unexplained:.1f} from what its noise, {first.noise}, explains: is it the data of the training, "
            "preprocessed the same way?"
        )
    # Unbiased noise leaves the mean of the first BatchNorm as it is, so that it tells of the data in any case.
    if first is not None and first.mean_offset is not None and first.mean_offset > OTHER_DATA_OFFSET:
        warnings.append(
            f"the mean that BatchNorm '{first.name}' sees on this data is {first.mean_offset:.1f} deviations from the "
            "stored one: is it the data of the training, preprocessed the same way?"
        )
    return tuple(warnings)


def _hidden(noise_map: NoiseMap) -> tuple[str, ...]:
    """The BatchNorms in the subgraphs of If, Loop and Scan, where nothing is measured and nothing is repaired."""
    noisy = sorted(noise_map.reached_in_subgraphs)
    warnings = []
    if noise_map.in_subgraphs:
        reached = f"; noise reaches {', '.join(noisy)}" if noisy else "; no noise reaches any of them"
        warnings.append(
            f"{len(noise_map.in_subgraphs)} BatchNorms in the subgraphs of control-flow nodes are not repaired{reached}"
        )
    hidden = [source.name for source in noise_map.sources if source.owner]
    if hidden:
        warnings.append(f"noise in the subgraph of a control-flow node can't be switched on here: {', '.join(hidden)}")
    return tuple(warnings)
