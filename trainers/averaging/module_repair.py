"""A module brought to its noise-averaged network in place.

    F(x) = E_n f(x; n)        the network that was trained: noise on, BatchNorms with their stored statistics
    R                         how far f(x; 1), what eval mode computes, is from F (`noise_average.severity`)

A module whose R is below its bound is left alone. Else its units are matched (`unit_repair`), and refined where that
is worth its time; what is nearest to F on held-out samples is written, if it is nearer than the module by more than
chance. The module is only read until that is decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from vsfix.graph_passes.errors import CheckFailedError, InputError, ModelError
from vsfix.graph_passes.estimators.refinement_cost import BATCH, RefinementCost
from vsfix.graph_passes.estimators.unit_fit import MatchedUnit, UnitTarget
from vsfix.graph_passes.estimators.units import FoundParameters
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.noise_average.nearness import (
    AS_TRAINED,
    LEAST_JUDGES,
    MATCH,
    REFINE,
    Candidate,
    judge_candidate,
    rows_of,
)
from vsfix.graph_passes.noise_average.noise_average import draws_for
from vsfix.graph_passes.noise_average.samples import held_out_rows
from vsfix.graph_passes.noise_average.severity import (
    DrawCollector,
    OutputReader,
    Reference,
    Severity,
)
from vsfix.graph_passes.noise_average.stored_statistics import compare_moments
from vsfix.graph_passes.statistics.batches import samples_in
from vsfix.graph_passes.statistics.moments import Moments
from vsfix.trainers.differentiable.refinement import RefinementConfig
from vsfix.trainers.differentiable.refinement_target import output_targets

from .module_noise import ModuleNoise, ToldNoise, find_noise, require_module
from .module_samples import MOST_SEED, ModuleSamples, call_of, named_outputs, state_kept, to_array, whole_number
from .noisy_forward import Drawn, NoisyForward, Observer
from .recording import ModuleUnit, Recording
from .repair_report import Layer, RepairReport
from .taps import MomentTaps, TargetTaps
from .unit_parameters import (
    StoredBatchNorm,
    functional,
    new_tensors,
    require_changeable,
    why_fixed,
    with_moments,
    write_tensors,
)
from .unit_repair import Match, refine_units

METHODS = ("auto", "match")
SAMPLES = 256


def repair_(
    module: nn.Module,
    loader: Iterable[Any],
    *,
    method: str = "auto",
    noise: ToldNoise = None,
    samples: int = SAMPLES,
    refine: bool | None = None,
    output_kinds: Mapping[str, str] | None = None,
    seed: int = 0,
) -> RepairReport:
    """Changes the scale and shift of BatchNorms and linear layers until eval mode computes what was trained.

    The module keeps its structure and its noise layers; it is meant for inference from then on. On any error, and where
    nothing is changed, it is what it was to the bit: parameters, buffers, training flags, and the states of the random
    generators. A BatchNorm without scale and shift, or a linear layer without bias, may get them; a warning says so.

    Args:
        module: trained, with its noise layers, on any device, in float32, float64, bfloat16 or float16.
        loader: gives batches as the training preprocessed them: tensors, tuples or lists that begin with the inputs, or
            dicts of arguments. As many leading entries of a tuple are taken as the forward needs. Labels are not used.
            No more batches are drawn than are needed. A DataLoader that begins with the first row is read at random.
        method: `auto` leaves a module alone whose R is below its bound; `match` tries in any case.
        noise: of parts that show none, as `{"blocks.3.attn": "dropout:0.1"}` or texts `PART=KIND:VALUE`; it is put on
            what the part returns.
        samples: how many are drawn at most, 2 to 1024; all of them run at once.
        refine: also refine end to end by gradient; None where it is worth its time.
        output_kinds: what outputs mean, `classes`, `probabilities` or `values`, by name (`output` where there is one);
            the others are recognised.
        seed: of the noise, and of the order of a DataLoader; the same samples and seed give the same result, in
            whatever order they come.

    Returns:
        What was done and why, R before and after; it prints as a table.

    Raises:
        InputError: a module, method, number or noise that can't be used; a module that was repaired already.
        DataError: too few samples, samples of several shapes, outputs that are not finite, or a loader that fails.
        CheckFailedError: BatchNorms whose stored statistics are not true under the noise.
        ModelError: a forward that takes another path for other samples.
        OutOfMemoryError: the memory of the device does not suffice for all samples at once.
    """
    require_module(module)
    if method not in METHODS:
        raise InputError(f"method '{method}': choose one of {', '.join(METHODS)}")
    seed = whole_number("seed", seed, 0, MOST_SEED)
    require_changeable(module)
    with state_kept(module), torch.no_grad():
        data = ModuleSamples.of(module, loader, samples, seed)
        network = _Network(module, data, find_noise(module, data.call(data.samples.batches[0]), noise), seed)
        report, tensors = _repair(network, _Options(method, refine, output_kinds))
    write_tensors(module, tensors)
    return report


@dataclass(frozen=True)
class _Options:
    """How to repair; see `repair_`."""

    method: str
    refine: bool | None
    output_kinds: Mapping[str, str] | None


class _Network:
    """A module with its samples and its noise."""

    def __init__(self, module: nn.Module, data: ModuleSamples, noise: ModuleNoise, seed: int) -> None:
        self.module, self.data, self.noise, self.seed = module, data, noise, seed
        self.count = len(data)
        batches = data.samples.batches
        self.parts = [(first, samples_in(b), b) for first, b in zip(data.samples.first, batches, strict=True)]

    def observed(self, observer: Observer, draw: int | None = None, module: nn.Module | None = None) -> Any:
        """Runs all samples in one forward that an observer listens to; the output of the module."""
        drawn = None if draw is None else Drawn(self.seed, draw, self.data.samples.keys)
        forward = NoisyForward(self.module, self.noise, observer)
        return forward.run(self.data.call(self.data.samples.joined()), drawn, module)

    def record(self) -> tuple[Recording, int, NoisyForward]:
        """The structure, from one forward of the first samples; their number; and the forward."""
        _, size, batch = self.parts[0]
        recording = Recording(self.module)
        forward = NoisyForward(self.module, self.noise, recording)
        recording.returned(named_outputs(forward.run(self.data.call(batch))), self.noise.parts)
        return recording, size, forward

    def outputs(self, tensors: Mapping[str, torch.Tensor] | None = None) -> dict[str, Array]:
        """The outputs over all samples with the noise off, by name, of the module or of it with other parameters."""
        runner = self.module if not tensors else functional(self.module, tensors)
        found = [named_outputs(call_of(runner, self.data.call(batch))) for _, _, batch in self.parts]
        whole: dict[str, Array] = {}
        for name in found[0]:
            parts = [part[name] for part in found if name in part]
            rows = {
                len(part) / size if part.dim() else 0.5 for part, (_, size, _) in zip(parts, self.parts, strict=False)
            }
            shapes = {tuple(part.shape[1:]) for part in parts}
            is_whole = len(parts) == len(found) and len(rows) == len(shapes) == 1 and next(iter(rows)).is_integer()
            if is_whole and parts[0].is_floating_point():
                whole[name] = np.concatenate([to_array(part) for part in parts])
        return whole

    def draw(self, draws: int, taps: TargetTaps, collector: DrawCollector, names: Iterable[str]) -> None:
        """Runs every sample under every draw of the noise."""
        forward = NoisyForward(self.module, self.noise, taps)
        for draw in range(draws):
            for first, size, batch in self.parts:
                taps.begin(first, size, measured=draw == 0)
                keys = self.data.samples.keys[first : first + size]
                found = named_outputs(forward.run(self.data.call(batch), Drawn(self.seed, draw, keys)))
                taps.require_all()
                collector.add(draw, first, size, {name: to_array(found[name]) for name in names})


@dataclass(frozen=True, eq=False)
class _Study:
    """F of a module, and everything that is compared with it."""

    network: _Network
    units: tuple[ModuleUnit, ...]
    targets: Mapping[str, UnitTarget]
    reference: Reference
    outputs: Mapping[str, Array]
    on: Mapping[str, Moments]
    cost: RefinementCost


def _repair(network: _Network, options: _Options) -> tuple[RepairReport, dict[str, torch.Tensor]]:
    """The report, and the tensors to be written; nothing is."""
    recording, size, forward = network.record()
    noises = tuple(f"{part or 'the module'}: {noise}" for part, noise in forward.seen)
    noises += tuple(f"{part or 'the module'}: of no known kind" for part in network.noise.parts)
    warnings = (*network.noise.warnings, *network.data.samples.warnings)
    plain = RepairReport("none", "", samples=network.count, noise=noises, warnings=warnings)
    if not noises:
        reason = "the module makes no noise; whether its statistics are those of the data vsfix inspect tells"
        return replace(plain, reason=reason), {}
    outputs = network.outputs()
    kinds = recording.output_kinds(outputs, options.output_kinds)
    _require_true_statistics(network)
    of_one = recording.cost / size  # sample
    draws = draws_for(network.count, of_one)
    readers = {name: OutputReader.of(k, outputs[name], network.count, draws, len(kinds)) for name, k in kinds.items()}
    collector = DrawCollector(readers, draws, network.count)
    every = recording.units()
    fixed = {unit.part: why for unit in every if (why := why_fixed(network.module, unit)) is not None}
    units = tuple(unit for unit in every if unit.part not in fixed)
    taps = TargetTaps(network.module, units, network.count, size, network.seed)
    network.draw(draws, taps, collector, readers)
    skipped = fixed | taps.skipped
    reference = collector.reference()
    compared = sum(outputs[name].size for name in reference.outputs) / network.count
    cost = RefinementCost(of_one, recording.values / size, compared, network.count)
    study = _Study(network, units, taps.targets(), reference, outputs, taps.moments(), cost)
    severity = study.reference.severity(outputs, network.seed)
    plain = replace(
        plain,
        severity=severity,
        draws=draws,
        outputs=tuple(f"{name}: {kind.meaning.value} ({kind.reason})" for name, kind in kinds.items()),
        warnings=(*warnings, *(f"'{name}' stays as it is: {why}" for name, why in skipped.items())),
    )
    if severity.is_healthy and options.method == "auto":
        return replace(plain, reason=_healthy(severity), warnings=(*plain.warnings, *_open(severity))), {}
    if not units:
        return replace(plain, reason="no scale and shift downstream of the noise is free: nothing can be matched"), {}
    if held_out_rows(network.count).sum() < LEAST_JUDGES:
        reason = f"{network.count} samples can't tell whether a repair is nearer; give {3 * LEAST_JUDGES} or more"
        return replace(plain, reason=reason), {}
    return _choose(study, plain, options)


def _choose(study: _Study, plain: RepairReport, options: _Options) -> tuple[RepairReport, dict[str, torch.Tensor]]:
    """Tries the candidates, and takes the one that is nearest to F."""
    network = study.network
    found = _match(study)
    tried = {MATCH: {name: unit.parameters for name, unit in found.items()}}
    why = _refusal(study, options)
    if why is None:
        try:
            tried[REFINE] = _refine(study, tried[MATCH])
        except (InputError, ModelError) as error:
            why = f"the match was not refined: {error}"
    warnings = (*plain.warnings, *([why] if why else []))
    judges = held_out_rows(network.count)
    outputs = {name: network.outputs(new_tensors(network.module, study.units, p)) for name, p in tried.items()}
    rows = [_candidate(AS_TRAINED, study.outputs, study, judges)]
    rows += [_candidate(name, found_outputs, study, judges) for name, found_outputs in outputs.items()]
    part = study.reference.rows(judges)
    before = part.severity(rows_of(study.outputs, judges), network.seed)
    report = replace(plain, before=before, judges=int(judges.sum()), candidates=tuple(rows), warnings=warnings)
    nearer = [row for row in rows if row.is_nearer]
    if not nearer:
        return replace(report, reason=_not_nearer(rows)), {}
    best = min(nearer, key=lambda row: row.severity)
    tensors = _with_moments(study, tried[best.name])
    after = part.severity(rows_of(network.outputs(tensors), judges), network.seed)
    names = tuple(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    new = [name for name in tensors if name not in network.module.state_dict()]
    added = [f"the state_dict has new entries, which were 1 or 0 before: {', '.join(new)}"] if new else []
    reason = f"'{best.name}' is nearest to the noise-averaged network on {report.judges} held-out samples"
    layers = tuple(Layer(name, unit.before, unit.after) for name, unit in found.items())
    done = replace(report, method=best.name, reason=reason, after=after, changed=names, layers=layers)
    return replace(done, warnings=(*warnings, *added)), tensors


def _match(study: _Study) -> dict[str, MatchedUnit]:
    """The matched parameters, by the name of the unit."""
    missing = {unit.part for unit in study.units if unit.is_last or unit.name not in study.targets}
    match = Match([unit for unit in study.units if unit.part not in missing], study.targets, study.network.count)
    while not match.is_done:
        solved = len(match.found)
        study.network.observed(match)
        match.require_all()
        match.finish_forward()
        if len(match.found) == solved:
            raise ModelError("the forward of the module takes another path for other samples: a unit was not met again")
    return match.found


def _refusal(study: _Study, options: _Options) -> str | None:
    """The reason why nothing is refined, or None; empty where nobody wants it. No clock decides."""
    if options.refine is False:
        return ""
    cost = study.cost.too_much
    if options.refine is None and cost is not None:
        return f"nothing was refined: its steps take {cost:.1g} multiplications; refine=True does it all the same"
    return None


def _refine(study: _Study, start: Mapping[str, FoundParameters]) -> dict[str, FoundParameters]:
    """The refined parameters, by the name of the unit."""
    targets = study.targets
    deviations = {
        unit.name: targets[unit.name].deviation if unit.name in targets else np.ones(unit.channels)
        for unit in study.units
    }
    return refine_units(
        study.network.module,
        study.network.data,
        study.units,
        start,
        deviations,
        output_targets(study.reference, study.outputs),
        RefinementConfig(study.cost.steps, batch_size=BATCH, seed=study.network.seed, run_size=study.cost.run_size),
    )


def _with_moments(study: _Study, found: Mapping[str, FoundParameters]) -> dict[str, torch.Tensor]:
    """The tensors to be written: what is stored agrees with what is seen without the noise."""
    network = study.network
    repaired = functional(network.module, new_tensors(network.module, study.units, found))
    taps = MomentTaps(network.module, network.count, corrected=False)
    network.observed(taps, module=repaired)
    complete = with_moments(found, network.module, study.units, taps.result(), study.on)
    return new_tensors(network.module, study.units, complete)


def _require_true_statistics(network: _Network) -> None:
    """Refuses a module whose BatchNorms don't store what its noisy runs show: F would be another network's."""
    taps = MomentTaps(network.module, network.count, corrected=True)
    network.observed(taps, draw=0)
    parts = network.module.get_submodule
    rows = [compare_moments(StoredBatchNorm.of(p, parts(p)), moments) for p, moments in taps.result().items()]
    wrong = [row for row in rows if row.differs]
    if wrong:
        first = wrong[0]
        raise CheckFailedError(
            f"refused: {len(wrong)} BatchNorms store other statistics than the module with its noise on shows, "
            f"'{first.name}' the first (variance off by a factor of {first.ratio:.2f}, mean by {first.offset:.2f} "
            "deviations). If the samples are the training's, preprocessed the same way, re-estimate them under the "
            "noise with torch.optim.swa_utils.update_bn, then repair"
        )


def _candidate(name: str, outputs: Mapping[str, Array], study: _Study, judges: Array) -> Candidate:
    """One candidate, by the samples that judge."""
    if not all(np.isfinite(outputs[output]).all() for output in study.reference.outputs):
        return Candidate(name, np.inf, np.inf, np.inf, np.inf, 1.0, None)
    return judge_candidate(name, outputs, study.reference, study.outputs, judges)


def _healthy(severity: Severity) -> str:
    """Why a healthy module stays as it is."""
    number = f"R = {severity.ratio:.2f} ({severity.low:.2f} to {severity.high:.2f}) is below {severity.bound}"
    if severity.is_open:
        return number
    return f"{number}: eval mode computes what was trained, far within what one draw of the noise does"


def _open(severity: Severity) -> tuple[str, ...]:
    """A warning where R is below its bound and yet leaves open whether a repair would gain."""
    if not severity.is_open:
        return ()
    return (f"{severity.doubt}; compare the accuracy on labelled data before and after method='match'",)


def _not_nearer(rows: Sequence[Candidate]) -> str:
    best = min(rows[1:], key=lambda row: row.severity)
    return (
        "no repair is nearer to the noise-averaged network than the module by more than chance: "
        f"'{best.name}' has R {best.severity:.2f}, the module {rows[0].severity:.2f}, on the samples that judge"
    )
