"""Runs a graph BatchNorm by BatchNorm over a calibration set, each behind corrected predecessors and the noise found.

For each region (see `places`)

    clean     its nodes run once; the moments of the BatchNorm's input are compared with what is stored
    tried     where they differ, its nodes run with unit noise on each place in turn: Dropout 0.5, whose variance is 1.
              Where the BatchNorm's input is linear in it, the noise adds E[(x_noisy - x_clean)^2] to the variance; else
              it is the variances that are compared, under noise about as strong as it is. Noise on what the BatchNorm
              reads needs no run: it adds E[x^2]
    noisy     where noise is found it is switched on, for all that follows

The BatchNorm then normalises with what was measured, as it did in training. Activations are held only as long as a
later region reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import redirect_readers
from vsfix.graph_passes.ir.runtime import Array, Float64Array, OpenModel
from vsfix.graph_passes.measurement.activation_cache import ActivationCache
from vsfix.graph_passes.measurement.measurement import as_measured
from vsfix.graph_passes.noise.noise import Noise, NoiseKind
from vsfix.graph_passes.noise.sampling import draw_affine
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.graph_passes.statistics.moments import Moments

from .parts import Activations, Parts, tensors_read
from .places import Place, Region, find_regions
from .plan import Plan
from .telling import ChannelEvidence, Source, Telling, group_variances
from .trial import Trial

NOTHING = 0.02  # a relative residual, root mean square over the channels, that needs no explanation
ENOUGH_POSITIONS, ENOUGH_SAMPLES = 16, 128  # where a sample has so many values, so many samples show what noise adds
MOST_DRAWS = 4  # where a sample has fewer

Decision = Callable[[Telling], Mapping[Source, float]]  # the s2 of what is to be switched on


class Walk:
    """The state of one walk.

    Args:
        graph: changed on the way; nobody else may use it afterwards. Without noise markers and Constant nodes.
        batches: the calibration set, shuffled.
        open_model: opens a part of the graph in a runtime.
        cache: of the activations.
        seed: of the draws.
        plan: what is tried.
        muted: names of BatchNorms that are not asked.

    Attributes:
        regions: one for each BatchNorm, in the order of the graph.
    """

    def __init__(
        self,
        graph: gs.Graph,
        batches: Sequence[Batch],
        open_model: OpenModel,
        cache: ActivationCache,
        seed: int,
        plan: Plan,
        muted: Collection[str] = (),
    ) -> None:
        self._activations = Activations(batches, cache)
        self._parts = Parts(graph, open_model, self._activations)
        self._seed = seed
        self._plan = plan
        self.regions = find_regions(graph)
        self._muted = muted
        self._last = {
            name: number
            for number, region in enumerate(self.regions)
            for name in (region.batch_norm.input.name, *(tensor.name for tensor in tensors_read(region.nodes)))
        }
        self._ending: dict[int, list[str]] = {}
        for name, number in self._last.items():
            self._ending.setdefault(number, []).append(name)
        self._home = {id(node): number for number, region in enumerate(self.regions) for node in region.nodes}

    def tellings(self, decide: Decision) -> Iterator[Telling]:
        """What each BatchNorm tells, in the order of the graph.

        Args:
            decide: the s2 of the sources to switch on for all that follows, from what was told.

        Raises:
            DataError: a value that is not finite.
        """
        for number, region in enumerate(self.regions):
            telling, found = self._tell(number, region, decide)
            yield telling
            region.batch_norm.with_statistics(*as_measured(region.batch_norm, found))
            for name in self._ending.pop(number, ()):
                self._activations.forget(name)

    def _tell(self, number: int, region: Region, decide: Decision) -> tuple[Telling, Moments]:
        """Clean, tried and noisy; what was told, and the moments that the BatchNorm's input has then."""
        clean = self._run_clean(number, region)
        evidence = ChannelEvidence.of(region.batch_norm, clean)
        if region.batch_norm.name in self._muted:
            evidence = evidence.muted()
        telling = evidence.tell(region.batch_norm.name, (), ())
        asks = evidence.excess > 0 and telling.without[0] >= NOTHING**2
        if not evidence.channels or not (asks or self._plan.only):  # what is looked for everywhere is tried everywhere
            return telling, clean
        direct, *others = region.places
        sources = self._plan.sources(direct)
        added = [_mean_squares(clean) for _ in sources]
        trial = Trial(self._parts, region, number, [place for place in others if self._plan.sources(place)])
        for source, one in self._try(trial, clean) if trial.masks else ():
            sources.append(source)
            added.append(one)
        telling = evidence.tell(region.batch_norm.name, sources, added)
        found = decide(telling) if sources else {}
        return telling, self._switch_on(trial, found) if found else clean

    def _run_clean(self, number: int, region: Region) -> Moments:
        """The moments of the BatchNorm's input as the region makes it; what others read is kept."""
        target = region.batch_norm.input
        if target.name not in {tensor.name for node in region.nodes for tensor in node.outputs}:
            return self._activations.moments(target.name, self._activations.numbers)
        kept = self._handed_on(number, region)
        shaped = [place.tensor for place in region.places[1:] if self._plan.sources(place)]
        with self._parts.open(region.nodes, kept=kept, measured=[target], shaped=shaped) as run:
            return run(self._activations.numbers, lambda _: {})[target.name]

    def _handed_on(self, number: int, region: Region) -> dict[str, gs.Variable]:
        """What later regions read of a region, and what its BatchNorm does."""
        made = {tensor.name: tensor for node in region.nodes for tensor in node.outputs}
        target = region.batch_norm.input.name
        return {name: tensor for name, tensor in made.items() if name == target or self._last.get(name, -1) > number}

    def _try(self, trial: Trial, clean: Moments) -> Iterator[tuple[Source, Float64Array]]:
        """What unit noise at each place adds to the variances, in each group, each (G, C)."""
        target = trial.region.batch_norm.input
        before = gs.Variable(f"{target.name}#clean", dtype=self._activations.get(0, target.name).dtype)
        difference = gs.Variable(f"{target.name}#difference", dtype=before.dtype)
        subtract = gs.Node("Sub", inputs=[target, before], outputs=[difference])
        positions = clean.count // clean.samples
        is_linear = all(mask.place.is_linear for mask in trial.masks)
        references: dict[range, Float64Array] = {}
        with self._parts.open(
            [*trial.nodes, subtract],
            fed=[before, *(mask.fed for mask in trial.masks)],
            measured=[difference] if is_linear else [difference, target],
        ) as run:

            def added(source: Source, numbers: range, draw: int) -> Float64Array:
                noise = Noise(source.kind, self._plan.strength(source))

                def feed(batch: int) -> dict[str, Array]:
                    factors = self._factors(trial, {source.place: noise}, batch, draw)
                    return factors | {before.name: self._activations.get(batch, target.name)}

                found = run(numbers, feed)
                if source.place.is_linear:
                    return _mean_squares(found[difference.name])
                if numbers not in references:
                    references[numbers] = group_variances(self._activations.moments(target.name, numbers))
                return (group_variances(found[target.name]) - references[numbers]) / noise.variance

            for mask in trial.masks:
                for source in self._plan.sources(mask.place, trial.shape(mask)):
                    numbers = self._enough(source, positions)
                    draws = range(_draws(source, clean.count))
                    yield source, np.mean([added(source, numbers, draw) for draw in draws], axis=0)
        subtract.inputs.clear()

    def _enough(self, source: Source, positions: int) -> range:
        """The batches that show what noise of a source adds."""
        if positions < ENOUGH_POSITIONS:
            return self._activations.numbers
        return self._activations.few(ENOUGH_SAMPLES if source.place.is_linear else 2 * ENOUGH_SAMPLES)

    def _switch_on(self, trial: Trial, found: Mapping[Source, float]) -> Moments:
        """Runs the region with its noise on; the moments of the BatchNorm's input then."""
        target, direct = trial.region.batch_norm.input, trial.region.places[0]
        noises = {source.place: Noise(source.kind, s2 / (1 + s2)) for source, s2 in found.items()}
        if any(mask.place in noises for mask in trial.masks):
            kept = self._handed_on(trial.number, trial.region)
            for mask in trial.masks:
                is_read = self._last.get(mask.place.name, -1) > trial.number
                if mask.place in noises and is_read and self._plan.is_for_all(mask.place):
                    kept[mask.place.name] = mask.noisy
            fed = [mask.fed for mask in trial.masks]
            with self._parts.open(trial.nodes, fed=fed, kept=kept, measured=[target]) as run:
                found_moments = run(
                    self._activations.numbers, lambda batch: self._factors(trial, noises, batch, MOST_DRAWS)
                )
            if direct not in noises:
                return found_moments[target.name]
        return self._put_direct(trial, noises[direct])

    def _factors(self, trial: Trial, noises: Mapping[Place, Noise], batch: int, draw: int) -> dict[str, Array]:
        """What is fed to each mask: a draw of the noise of its place, or ones."""
        samples = self._activations.samples(batch)
        return {
            mask.fed.name: trial.draw(mask, noises[mask.place], samples, (self._seed, batch, draw))
            if mask.place in noises
            else mask.ones
            for mask in trial.masks
        }

    def _put_direct(self, trial: Trial, noise: Noise) -> Moments:
        """Puts noise on what the BatchNorm reads, for it alone or for all; the moments then."""
        place, target = trial.region.places[0], trial.region.batch_norm.input
        name = target.name
        if not self._plan.is_for_all(place):
            own = gs.Variable(f"{target.name}#{trial.number}.alone", dtype=target.dtype)
            redirect_readers(target, own, place.readers)
            name = own.name
            home = self._home.get(id(trial.region.batch_norm.node), trial.number)
            self._last[name] = home
            self._ending.setdefault(home, []).append(name)
        for batch in self._activations.numbers:
            rng = np.random.default_rng((self._seed, trial.number, 0, batch, 0))
            array = self._activations.get(batch, target.name)
            noisy = array * draw_affine(noise, array.shape, rng)[0].astype(array.dtype, copy=False)
            self._activations.put(batch, name, noisy)
        self._activations.hold(name)
        return self._activations.moments(name, self._activations.numbers)


def _draws(source: Source, values: int) -> int:
    """How many draws show what noise of a source adds, where a channel has so many values.

    Where nothing mixes what the noise is on, unit noise gives the same square in each draw: n - 1 is 1 or -1.
    """
    if source.place.is_linear and (source.place.is_tied or source.kind is NoiseKind.DROP_PATH):
        return 1
    return min(max(-(-ENOUGH_SAMPLES * ENOUGH_POSITIONS // values), 1), MOST_DRAWS)


def _mean_squares(found: Moments) -> Float64Array:
    """E[x^2] in each group, shape (G, C)."""
    return found.group_centred_sums / found.counts[:, None] + found.group_means**2
