"""The plan of a repair: which method, on which noise, and why.

It follows from what the file shows, what the data tells, and what was asked for:

noise marked                    match, toward the noise-averaged network; without data on inputs made from the model
noise not shown, data given     the noise is inferred from the statistics; if it is found, match
noise not shown, no data        an error: nothing tells a shift from a change of the data
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms, find_modules
from vsfix.graph_passes.errors import InputError, ModelError
from vsfix.graph_passes.io.model_file import read_metadata
from vsfix.graph_passes.ir.runtime import OpenModel
from vsfix.graph_passes.noise.analysis import NoiseMap, analyse_noise
from vsfix.graph_passes.noise.marker import REPAIR_KEY
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.noise_inference.verdict import Verdict
from vsfix.graph_passes.precision.precision import stated_precision
from vsfix.graph_passes.statistics.batches import Batch, count_samples, first_samples, prescribed_batch_size
from vsfix.pipeline.inspection.fault import find_fault
from vsfix.pipeline.inspection.lost_noise import LostNoise, infer_lost_noise
from vsfix.pipeline.inspection.preparation import PreparedModel, was_healthy

from .repair_config import AVERAGING, NARROW, NEED_NOISE, RepairConfig

SAMPLES = 500  # what the inference of lost noise wants; the paired method stops when its intervals are narrow
MATCHED = 256  # what a match takes where the file says where its noise was; more bring next to nothing
NOT_SHOWN = (
    "the file marks no noise layer, so a shift can't be told apart from other changes; export the network with `vsfix "
    "export`, give --data so that the noise can be inferred from the statistics, or say where it was with --noise"
)


@dataclass(frozen=True)
class RepairPlan:
    """The method of a repair and the reason for it.

    Attributes:
        method: one of the methods, or `none`.
        reason: why.
        noise: lost noise that was inferred, by the tensor that it was on; it is to be marked first.
        warnings: what a person should know.
    """

    method: str
    reason: str
    noise: Mapping[str, Noise] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def plan_repair(
    prepared: PreparedModel, batches: Sequence[Batch], open_model: OpenModel, config: RepairConfig
) -> RepairPlan:
    """Decides what will be done; nothing is changed.

    Args:
        prepared: the model.
        batches: the calibration set; empty where none was given.
        open_model: the runtime.
        config: what was asked for.

    Raises:
        InputError: the method that was asked for does not fit the file.
        ModelError: nothing can be decided from what there is, as of a file that vsfix has folded and cast.
    """
    if config.method == "none":
        return RepairPlan("none", "the parameters are kept, as was asked for")
    is_again = bool(prepared.repaired) and config.method == "auto" and not config.noise
    again = RepairPlan("none", f"vsfix repaired this file already ({len(prepared.repaired)} layers)")
    if is_again and prepared.noise_map.sources:
        return again
    if not find_batch_norms(prepared.graph):
        if REPAIR_KEY in read_metadata(prepared.source) and not prepared.noise_map.sources:
            return _folded(prepared)
        if config.method not in AVERAGING:
            raise InputError(f"--method {config.method} re-estimates BatchNorms, and the model has none; take match")
    if config.method == "exact" and config.layers != "auto":
        return RepairPlan(config.method, "asked for")
    if is_again and prepared.is_lost:
        return again
    if not prepared.is_lost:
        choice = _with_markers(prepared.noise_map, config)
        if choice.method != "none":
            return choice
        fault = find_fault(prepared.graph, batches, open_model, seed=config.seed, max_memory=config.max_memory)
        if fault is None:
            return choice
        reason = f"the fault is another: {fault.kind.value}"
        return replace(choice, reason=reason, warnings=(*choice.warnings, fault.sentence))
    if config.method not in ("auto", *NEED_NOISE) and not batches:
        raise InputError(
            f"the file marks no noise layer, so --method {config.method} does not know which BatchNorms are concerned; "
            "name them with --layers all or a glob"
        )
    if not batches:
        raise ModelError(NOT_SHOWN)
    return _with_inference(infer_lost_noise(prepared, batches, open_model, max_memory=config.max_memory), config)


def _folded(prepared: PreparedModel) -> RepairPlan:
    """The choice where vsfix wrote the file and no BatchNorm is left in it."""
    precision = stated_precision(prepared.graph)
    if precision in NARROW:
        raise ModelError(
            f"no BatchNorm is left, and the file was cast to {precision}; take the float32 file that it was made from, "
            "or --method none, which keeps every parameter"
        )
    if prepared.repaired:
        return RepairPlan("none", "no BatchNorm is left: vsfix folded them all when it repaired this file")
    if was_healthy(read_metadata(prepared.source)):
        return RepairPlan("none", "no BatchNorm is left, and the file needed no repair when vsfix folded it")
    doubt = (
        "vsfix folded this file without a repair, and without its BatchNorms nothing tells whether it needs one: give "
        "the file as it was before"
    )
    return RepairPlan("none", "no BatchNorm is left, and vsfix repaired none of this file", warnings=(doubt,))


def _with_markers(noise_map: NoiseMap, config: RepairConfig) -> RepairPlan:
    """The choice where the file shows where the noise was, or that there was none."""
    if not noise_map.sources:
        return RepairPlan("none", "the export says that the network has no noise layer: there is nothing to repair")
    if all(source.owner for source in noise_map.sources):
        return RepairPlan("none", "all noise stands in the subgraphs of control-flow nodes, where none can be measured")
    if config.method not in AVERAGING and config.layers == "auto" and not noise_map.reached:
        return RepairPlan("none", "no noise reaches a BatchNorm: there is nothing to repair")
    if config.method != "auto":
        return RepairPlan(config.method, "asked for")
    return RepairPlan("auto", "the file says where the noise was, so the network that it averages to can be run")


def _with_inference(lost: LostNoise, config: RepairConfig) -> RepairPlan:
    """The choice where the noise had to be inferred."""
    verdict = lost.inference.verdict
    if verdict is Verdict.FOUND:
        return RepairPlan(
            config.method,
            f"the file has lost its noise layers, and its statistics tell them: {lost.sentence}",
            noise=lost.noise,
            warnings=lost.doubts,
        )
    if verdict is Verdict.NO_NOISE:
        return RepairPlan("none", f"the statistics show no noise: {lost.sentence}")
    reason = (
        "no noise is certain enough to repair"
        if lost.fault is None
        else f"the fault is another: {lost.fault.kind.value}"
    )
    return RepairPlan("none", reason, warnings=(lost.question,))


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


def is_of_all(method: str, prepared: PreparedModel, config: RepairConfig) -> bool:
    """Whether all statistics are in doubt, and those of a network with noise: only training leaves such.

    Re-estimated with the noise off they would be those of no network that was trained.
    """
    is_drawn = any(not source.owner for source in prepared.noise_map.sources)
    return method == "exact" and config.layers == "all" and is_drawn and bool(prepared.noise_map.reached)


def averaged_part(
    batches: Sequence[Batch], prepared: PreparedModel, method: str, draw: Callable[[], Sequence[Batch]]
) -> Sequence[Batch]:
    """The samples that the average over the noise, and so R, rests on where nobody says how many.

    Args:
        batches: what was drawn in all.
        prepared: the model.
        method: of the repair.
        draw: draws as many as a match takes of a model that shows its noise.
    """
    if count_samples(batches) <= MATCHED:
        return batches
    if is_matched(prepared, method):
        return draw()
    return first_samples(batches, MATCHED, whole=prescribed_batch_size(prepared.graph) is not None)


def is_matched(prepared: PreparedModel, method: str) -> bool:
    """Whether the file is matched without its noise being inferred first."""
    return method in AVERAGING and not prepared.is_lost
