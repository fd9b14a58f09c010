"""Finds the noise of a training run from the statistics that it left behind, where the file has lost its markers.

    glance     what each BatchNorm stores against what it sees in the file as it is; where all agree, that is the answer
    explore    a walk that tries every place on the way, and switches on what the BatchNorms seen so far agree on
    agree      the few kinds of places that explain the network (see `agreement`)
    compare    where the own BatchNorm can't tell the kind of the noise, or whom it is for, those behind it can: a walk
               for each alternative, with nothing else tried
    confirm    a walk with what was found on; its residuals are those of the answer

The verdict:

    no noise                 the variances without noise are off by no more than chance, or by no more than noise of a
                             variance of 0.02 makes
    found                    the noise leaves no more than chance, or a fifth, and the means agree
    ambiguous                other places explain as much
    not explained by noise   noise leaves more: another data domain, another preprocessing, stale statistics
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_modules, require_batch_norms
from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.ir.runtime import Float64Array, OpenModel
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY, ActivationCache
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, hold_constants, measure
from vsfix.graph_passes.noise.marker import marker_label, read_marker
from vsfix.graph_passes.noise.noise import NoiseKind
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import Batch, count_samples, first_samples
from vsfix.graph_passes.statistics.moments import Moments

from .agreement import Agreement, Kinds, likely
from .places import Place, Signature
from .plan import Plan
from .residuals import DRIFT, stored_against_seen
from .telling import TRAINING_SAMPLES, Source, Telling, is_sure, jackknife_error
from .verdict import NoiseInference, conclude
from .walk import NOTHING, Decision, Walk

FEW = 256  # samples that compare the kinds of noise
TIED_KINDS = (NoiseKind.DROPOUT, NoiseKind.FEATURE_DROPOUT, NoiseKind.DROP_PATH)
RARER = 2.0  # standard errors, by which what is rarer than Dropout for one BatchNorm must leave less
STRENGTHS = (0.1, 0.8)  # the weakest and the strongest noise that is tried


def infer_noise(
    graph: gs.Graph,
    batches: Sequence[Batch],
    open_model: OpenModel,
    *,
    seed: int = 0,
    max_memory: int = DEFAULT_MAX_MEMORY,
    muted: Collection[str] = (),
    measured: Mapping[str, Moments] | None = None,
) -> NoiseInference:
    """Looks for the noise that explains the stored statistics.

    Args:
        graph: not changed; it must mark no noise.
        batches: the calibration set, some hundred shuffled samples of the training data in batches of about 64.
        open_model: opens a part of the graph in a runtime.
        seed: of the draws.
        max_memory: bytes that the process may hold; activations beyond go to the disk.
        muted: names of BatchNorms that are not asked: what they store is known to be wrong.
        measured: what `measure` finds over the set in the graph as it is, where that is known already.

    Raises:
        InputError: the graph marks noise already.
        ModelError: it has no BatchNorm.
        DataError: fewer than two samples, or data that no statistic can be compared with.
    """
    require_batch_norms(graph)
    for node in graph.nodes:
        if read_marker(node) is not None:
            raise InputError(f"the file marks its noise already, as Dropout '{marker_label(node)}': nothing to infer")
    if count_samples(batches) < 2:
        raise DataError("the calibration set has fewer than two samples; give some hundred")
    search = _Search(graph, batches, open_model, seed, max_memory, muted)
    stored = search.glance(measured)
    if not stored:
        raise DataError("no BatchNorm varies enough over these samples to be compared; give some hundred")
    if not any(_asks(telling) for telling in stored):
        return conclude(stored, Plan(), (), search.samples)
    shared = [telling for telling in stored if telling.batch_norm in search.shared]
    found = search.explore(NoiseKind.DROPOUT)
    if not any(telling.channels for telling in found.tellings):  # one module that is used several times
        return conclude(stored, Plan(), (), search.samples)
    explored = {NoiseKind.DROPOUT: found}
    if found.is_tied and not found.is_simple(search.few):
        tried = found.explaining
        for kind in TIED_KINDS[1:] if found.is_branch else TIED_KINDS[1:2]:
            other = explored[kind] = search.explore(kind, tried)
            gain = found.left - other.left
            found = other if gain[0] > jackknife_error(gain) else found
    if not found.kinds and not found.own:
        return conclude([*search.walk(Plan(only=frozenset())), *shared], Plan(), (), search.samples)
    strong = replace(found, plan=replace(found.plan, strengths=found.strengths))
    plan, equal = search.compare(strong, {kind: one.left for kind, one in explored.items()})
    tellings = search.walk(plan)
    needed = Agreement.of(tellings, search.samples)
    if needed.kinds() < found.kinds:
        plan = replace(plan, only=needed.kinds(), own=needed.own_places(needed.kinds()))
        tellings = search.walk(plan)
    return conclude([*tellings, *shared], plan, found.rivals, search.samples, equal)


@dataclass(frozen=True, eq=False)
class _Found:
    """What one exploration came to.

    Attributes:
        tellings: of its BatchNorms.
        plan: of the walk.
        kinds: the kinds of places that explain the network.
        own: the sources that single BatchNorms need beside.
        rivals: other kinds that explain as much.
    """

    tellings: Sequence[Telling]
    plan: Plan
    kinds: Kinds
    own: frozenset[tuple[str, NoiseKind]]
    rivals: Sequence[Kinds]

    @property
    def narrowed(self) -> Plan:
        """The plan that tries only what was found."""
        return replace(self.plan, only=self.kinds, own=self.own, among=None)

    @property
    def places(self) -> list[Place]:
        """Where noise was found."""
        return [
            source.place
            for telling in self.tellings
            for source in telling.sources
            if source.of in self.kinds or source.key in self.own
        ]

    @property
    def strengths(self) -> dict[tuple[str, NoiseKind], float]:
        """The drop ratio of each source where it was found."""
        found = {}
        for telling in self.tellings:
            fit = telling.fit(_chosen(telling, self.kinds, self.own))
            for index, s2 in zip(fit.chosen, fit.variances[0], strict=True):
                found[telling.sources[index].key] = float(np.clip(s2 / (1 + s2), *STRENGTHS))
        return found

    @property
    def explaining(self) -> frozenset[Signature]:
        """The signatures of the places that are in a fit of some BatchNorm which leaves as little as the best."""
        return frozenset(
            telling.sources[index].place.signature
            for telling in self.tellings
            if telling.sources
            for index in likely(telling)
        )

    @property
    def is_tied(self) -> bool:
        """Whether the kind of some noise is told only by the BatchNorms behind its own."""
        return any(place.is_tied for place in self.places)

    @property
    def is_branch(self) -> bool:
        """Whether some of that noise is on a branch."""
        return any(place.is_tied and place.is_branch for place in self.places)

    def is_simple(self, samples: int) -> bool:
        """Whether one kind of place explains everything."""
        return len(self.kinds) + len(self.own) < 2 and bool(self.left[0] <= _by_chance(self.tellings, samples))

    @cached_property
    def left(self) -> Float64Array:
        """What is left of all BatchNorms, shape (1 + G,)."""
        return _left(self.tellings, self.kinds, self.own)


class _Search:
    """Walks over one graph.

    Attributes:
        samples: of the whole set.
        few: of the part that explores.
        shared: the modules that are used several times.
    """

    def __init__(
        self,
        graph: gs.Graph,
        batches: Sequence[Batch],
        open_model: OpenModel,
        seed: int,
        max_memory: int,
        muted: Collection[str],
    ) -> None:
        self._graph = graph
        self._batches = batches
        self._open_model = open_model
        self._seed = seed
        self._max_memory = max_memory
        # What a module stores that is used several times is of all uses together, and none of them can be held to it.
        several = [module for module in find_modules(graph) if len(module.uses) > 1]
        self.shared = {module.name for module in several}
        self._muted = {*muted, *(use.name for module in several for use in module.uses)}
        self.samples = count_samples(batches)
        has_positions = any(node.op == "Conv" for node in graph.nodes)
        self._few = first_samples(batches, FEW, whole=True) if has_positions else list(batches)
        self.few = count_samples(self._few)

    def glance(self, measured: Mapping[str, Moments] | None) -> list[Telling]:
        """What each BatchNorm stores against what it sees in the file as it is: one run, which most files pass."""
        if measured is None:
            config = MeasurementConfig(max_memory=self._max_memory)
            measured = measure(self._graph, self._batches, self._open_model, config)
        return stored_against_seen(self._graph, measured)

    def explore(self, kind: NoiseKind, among: frozenset[Signature] | None = None) -> _Found:
        """Tries every place, with one kind of noise where the own BatchNorm can't tell it.

        Args:
            kind: of that noise.
            among: the signatures of the places; None for all.
        """
        plan = Plan(default=kind, among=among)
        agreement = Agreement(self.few)
        tellings = self._walk(plan, self._few, agreement.add)
        kinds = agreement.kinds()
        return _Found(tellings, plan, kinds, agreement.own_places(kinds), agreement.rivals(kinds))

    def compare(self, found: _Found, explored: Mapping[NoiseKind, Float64Array]) -> tuple[Plan, frozenset[NoiseKind]]:
        """Whom the noise at shared places is for, and its kind where the own BatchNorm can't tell it.

        Args:
            found: the exploration that left least.
            explored: what each exploration left, by the kind of noise; where that is the whole question, nothing is
                walked again.

        Returns:
            The plan that leaves least, and the other kinds that leave as little.
        """
        plan, equal = replace(found.narrowed, default=NoiseKind.DROPOUT), set[NoiseKind]()
        plan = replace(plan, for_all=plan.for_all | _noisy_for_all(found.places))
        alternatives = list(_alternatives(found.places))
        signatures = {signature for signature, _ in alternatives}
        is_answered = len(signatures) == 1 and None not in {kind for _, kind in alternatives}
        known = explored if is_answered and (len(explored) > 1 or found.is_simple(self.few)) else {}

        def left_by(tried: Plan, kind: NoiseKind | None) -> Float64Array:
            return known[kind] if kind is not None and kind in known else _left(self.walk(tried, self._few))

        least = left_by(plan, NoiseKind.DROPOUT) if alternatives else np.zeros(1)
        for signature, kind in alternatives:
            if kind is None:
                other = replace(plan, for_all=plan.for_all | {signature})
            else:
                other = replace(plan, kinds={**plan.kinds, signature: kind})
            if all(other.kind(one) is plan.kind(one) and other.sites(one) == plan.sites(one) for one in found.places):
                continue
            left = left_by(other, kind)
            gain = least - left
            if gain[0] > RARER * jackknife_error(gain):
                plan, least, equal = other, left, set()
            elif kind is not None and -gain[0] < RARER * jackknife_error(gain):
                equal.add(kind)
        return plan, frozenset(equal)

    def walk(self, plan: Plan, batches: Sequence[Batch] | None = None) -> list[Telling]:
        """What the BatchNorms tell of what a plan tries, with that switched on which fits best."""

        def decide(telling: Telling) -> dict[Source, float]:
            fit = telling.fit(range(len(telling.sources)))
            return {telling.sources[i]: float(s2) for i, s2 in zip(fit.chosen, fit.variances[0], strict=True)}

        return self._walk(plan, batches or self._batches, decide)

    def _walk(self, plan: Plan, batches: Sequence[Batch], decide: Decision) -> list[Telling]:
        """One walk over a copy of the graph."""
        copy = self._graph.copy()
        hold_constants(copy)
        with ActivationCache(self._max_memory) as cache:
            walk = Walk(copy, batches, self._open_model, cache, self._seed, plan, self._muted)
            tellings = []
            with stage("trying noise at each BatchNorm", len(walk.regions)) as trying:
                for telling in walk.tellings(decide):
                    tellings.append(telling)
                    trying.step()
            return tellings


def _asks(telling: Telling) -> bool:
    """Whether what a BatchNorm stores asks for a reason."""
    return is_sure(telling.without, NOTHING**2) or is_sure(telling.means, NOTHING**2)


def _noisy_for_all(places: Sequence[Place]) -> frozenset[Signature]:
    """The signatures of tensors of which every reader was found to have noise: it is one noise then, on the tensor."""
    readers: dict[str, int] = {}
    for place in places:
        readers[place.name] = readers.get(place.name, 0) + len(place.readers)
    return frozenset(
        place.signature for place in places if place.is_shared and readers[place.name] == place.reader_count
    )


def _alternatives(places: Sequence[Place]) -> Iterator[tuple[Signature, NoiseKind | None]]:
    """The signatures whose noise may be for all readers, and the kinds that a tied place may have."""
    for signature in dict.fromkeys(place.signature for place in places if place.is_shared):
        yield signature, None
    branches = {place.signature for place in places if place.is_branch}
    for signature in dict.fromkeys(place.signature for place in places if place.is_tied):
        for kind in TIED_KINDS if signature in branches else TIED_KINDS[:2]:
            yield signature, kind


def _left(
    tellings: Sequence[Telling], kinds: Kinds | None = None, own: frozenset[tuple[str, NoiseKind]] = frozenset()
) -> Float64Array:
    """What is left of all BatchNorms with some sources, or with all of those tried, shape (1 + G,)."""
    fits = [
        telling.fit(range(len(telling.sources)) if kinds is None else _chosen(telling, kinds, own)).left
        for telling in tellings
        if telling.channels
    ]
    groups = min(len(left) for left in fits)
    return np.asarray(np.sum([left[:groups] for left in fits], axis=0))


def _chosen(telling: Telling, kinds: Kinds, own: frozenset[tuple[str, NoiseKind]]) -> list[int]:
    """The numbers of the sources of some kinds, and of some places."""
    return [i for i, source in enumerate(telling.sources) if source.of in kinds or source.key in own]


def _by_chance(tellings: Sequence[Telling], samples: int) -> float:
    """What the errors of the stored statistics, and weights that moved, leave of all BatchNorms."""
    return sum(telling.chance * samples / TRAINING_SAMPLES + DRIFT**2 for telling in tellings if telling.channels)
