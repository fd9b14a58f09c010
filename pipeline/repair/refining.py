"""Refinement end to end, in torch, of what the match found: whether it is worth its time, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.estimators.refinement_cost import BATCH, RefinementCost
from vsfix.graph_passes.estimators.units import FoundParameters, find_units, insert_affine
from vsfix.graph_passes.io.model_file import export_model
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.measurement.resident_memory import return_freed_memory
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.pipeline.inspection.noise_study import NoiseStudy, multiply_adds
from vsfix.pipeline.inspection.preparation import PreparedModel

from .repair_config import RepairConfig

SMALL_STEP = 1e10  # multiplications; below it several threads wait for each other longer than they compute
LEAST_MEMORY = 512 << 20  # bytes


def refusal(study: NoiseStudy, config: RepairConfig) -> str | None:
    """Why nothing is refined, or None. What it costs follows from the graph alone, never from a clock."""
    if config.refine is False:
        return "not asked for"
    if config.refine is None and config.max_memory < LEAST_MEMORY:  # the import alone takes half of that
        least = f"{LEAST_MEMORY >> 20}M"
        return f"nothing was refined: torch takes a --max-memory of {least} or more; --refine does it all the same"
    try:
        import torch  # noqa: F401
    except ImportError:
        return "nothing was refined: that needs torch; run: pip install 'vsfix[train]'"
    cost = cost_of(study).too_much
    if config.refine is None and cost is not None:
        return f"nothing was refined: its steps take {cost:.1g} multiplications; --refine does it all the same"
    return None


def cost_of(study: NoiseStudy) -> RefinementCost:
    """The cost of a refinement, by what the graph makes of its samples."""
    return RefinementCost(
        forward=multiply_adds(study.graph, study.average.shapes) / study.first_size,
        activations=sum(float(np.prod(shape)) for shape in study.average.shapes.values()) / study.first_size,
        outputs=sum(study.outputs[name].size for name in study.reference.outputs) / len(study.samples),
        samples=len(study.samples),
    )


@contextmanager
def _threads(cost: RefinementCost) -> Iterator[None]:
    """One thread of torch for small steps; what was set before is set again."""
    import torch

    before = torch.get_num_threads()
    if cost.step < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def refine_units(
    study: NoiseStudy, start: Mapping[str, FoundParameters], prepared: PreparedModel, config: RepairConfig
) -> dict[str, FoundParameters] | str:
    """Refines the scale and shift of every unit, and the bias of the last layers, toward the outputs of F.

    Args:
        study: F and its units.
        start: what the match found.
        prepared: the model.
        config: the seed.

    Returns:
        What was found, by the name of the unit; a sentence where the graph can't be differentiated.
    """
    from vsfix.trainers.differentiable.refinement import RefinementConfig, refine
    from vsfix.trainers.differentiable.refinement_target import output_targets

    cost = cost_of(study)
    graph = study.written(start)
    chosen = {unit.name for unit in study.units}
    units = [unit for unit in find_units(graph, study.average.shapes) if unit.name in chosen]
    free = insert_affine(graph, units, study.average.shapes)
    RemoveMarkers()(graph)
    units_of_steps: dict[str, Array] = {}
    for affine in free:
        name = affine.unit.name
        target = study.targets.get(name)
        deviation = np.ones(affine.unit.channels) if target is None else target.deviation
        if not affine.unit.is_last:
            units_of_steps[affine.scale.name] = np.ones(affine.scale.shape)
        units_of_steps[affine.shift.name] = deviation.reshape(affine.shift.shape)
    try:
        with _threads(cost):
            refined = refine(
                export_model(graph, prepared.source),
                units_of_steps,
                dict(study.samples.joined()),
                output_targets(study.reference, study.outputs),
                RefinementConfig(cost.steps, batch_size=BATCH, seed=config.seed, run_size=cost.run_size),
            )
    except InputError as error:  # it can't be differentiated, or not on these samples, or its outputs don't hold them
        return f"the match was not refined: {error}"
    finally:
        return_freed_memory()
    found: dict[str, FoundParameters] = {}
    for affine in free:
        unit = affine.unit
        earlier = start.get(unit.name) or FoundParameters(np.ones(unit.channels), np.zeros(unit.channels))
        a = np.asarray(refined.values.get(affine.scale.name, np.ones(unit.channels))).reshape(-1)
        b = np.asarray(refined.values[affine.shift.name]).reshape(-1)
        if (a <= 0).any():
            a, b = np.where(a > 0, a, 1.0), np.where(a > 0, b, 0.0)
        found[unit.name] = FoundParameters(a * earlier.scale, a * earlier.shift + b)
    return found
