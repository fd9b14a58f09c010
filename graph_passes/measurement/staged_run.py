"""Runs a graph stage by stage over a whole calibration set, and holds between the stages what later ones read.

What a stage makes of a batch may find no memory. With the noise off the batch then stays behind: it keeps what the
stage read, and runs the stage again when the next one needs it, which gives the same bits. A few convolutions cost less
than a way to the disk and back; what would be run again past `MOST_AGAIN` stages goes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.io.model_file import export_subgraph
from vsfix.graph_passes.ir.runtime import Array, OpenModel, Runner, side_by_side
from vsfix.graph_passes.noise.sampling import apply_noise, generators_of
from vsfix.graph_passes.statistics.batches import Batch, samples_in

from .activation_cache import ActivationCache
from .staging import Item, Stage

_Result = TypeVar("_Result")
MOST_AGAIN = 2  # stages that are run again for the next one


class StagedRun:
    """One pass over the stages: what is fed to each, and what is kept between them.

    Args:
        graph: what the stages are of; between two stages its constants may be changed.
        batches: the calibration set.
        open_model: opens a part of the graph in a runtime.
        cache: of the activations.
        seed: of the noise of the markers that the stages name.
        repeats: how often the set is run, under other draws each time.
    """

    def __init__(
        self,
        graph: gs.Graph,
        batches: Sequence[Batch],
        open_model: OpenModel,
        cache: ActivationCache,
        seed: int = 0,
        repeats: int = 1,
    ) -> None:
        self._graph = graph
        self._batches = batches
        self._open_model = open_model
        self._seed = seed
        self._cache = cache
        self._inputs = {tensor.name for tensor in graph.inputs}
        self._runs = range(len(batches) * repeats)  # a run is one batch under one draw of the noise
        self._first_samples = [0, *np.cumsum([samples_in(batch) for batch in batches])[:-1].tolist()]
        self._stages: Sequence[Stage[Any]] = ()
        self._last_use: Mapping[str, int] = {}
        self._current = 0
        self._begins = [0] * len(self._runs)  # the first stage that a run has behind it no results of
        self._noise_is_off = False
        self._at_hand: set[str] = set()  # what must be held, by name
        self._dtypes: dict[str, Any] = {}

    def stages(self, stages: Sequence[Stage[Item]]) -> Iterator[Stage[Item]]:
        """The stages in order; each must be run before the next is asked for."""
        self._stages = stages
        self._last_use = {name: index for index, stage in enumerate(stages) for name in stage.wanted}
        self._noise_is_off = not any(stage.markers for stage in stages)
        self._at_hand = {name for stage in stages for name in stage.measured_of_others}
        for index, stage in enumerate(stages):
            self._current = index
            yield stage

    def run_stage(
        self,
        stage: Stage[Item],
        tap_nodes: Sequence[gs.Node],
        tap_outputs: Sequence[gs.Variable],
        read: Callable[[int, Mapping[str, Array]], _Result],
    ) -> Iterator[tuple[int, _Result]]:
        """Runs one stage over every batch, the noise first.

        Args:
            stage: what to run.
            tap_nodes: run with the nodes of the stage.
            tap_outputs: what they give out.
            read: called from several threads with the number of the run and everything that the runtime gave.

        Yields:
            The number of the first sample of a run, and what was read from it, in the order of the runs.
        """
        with ExitStack() as stack:
            again = range(min(self._begins, default=self._current), self._current)
            runners = [self._open(self._stages[index], (), (), stack) for index in again]
            own = self._open(stage, tap_nodes, tap_outputs, stack)

            def run(number: int) -> _Result:
                self._make_noise(stage, number)
                made: dict[str, Array] = {}
                for index, runner in zip(again, runners, strict=True):
                    if index >= self._begins[number]:
                        made |= self._run(runner, self._stages[index], number, made)
                arrays = self._run(own, stage, number, made)
                found = read(number, arrays)
                self._hand_on(number, made | {name: arrays[name] for name in stage.hands_on if name in arrays})
                return found

            results = side_by_side(run, self._runs, own.concurrency if own else 1)
            for number, found in zip(self._runs, results, strict=True):
                yield self._first_samples[number % len(self._batches)], found

    def _open(
        self,
        stage: Stage[Any],
        tap_nodes: Sequence[gs.Node],
        tap_outputs: Sequence[gs.Variable],
        stack: ExitStack,
    ) -> Runner | None:
        """A runner of one stage; None where it gives out nothing."""
        produced = {tensor.name: tensor for node in stage.nodes for tensor in node.outputs}
        outputs = [*(produced[name] for name in stage.hands_on if name in produced), *tap_outputs]
        if not outputs:
            return None
        return stack.enter_context(self._open_model(self._part(stage, [*stage.nodes, *tap_nodes], outputs)))

    def _run(
        self, runner: Runner | None, stage: Stage[Any], number: int, made: Mapping[str, Array]
    ) -> dict[str, Array]:
        """What one stage gives out in a run; `made` is what those before it were run again for."""
        if runner is None:
            return {}
        return runner.run({name: made[name] if name in made else self.array(number, name) for name in stage.reads})

    def _hand_on(self, number: int, arrays: Mapping[str, Array]) -> None:
        """Keeps what later stages read of one run and drops what none does any more, or leaves the run behind."""
        first, last = self._begins[number], self._current
        passed = self._stages[first : last + 1]
        read = {name for stage in passed for name in stage.wanted | stage.made_by_markers}
        held = [name for name in read.difference(self._inputs) if self._cache.holds(number, name)]
        finished = [name for name in held if self._last_use.get(name, 0) <= last]
        kept = {name: array for name, array in arrays.items() if self._last_use.get(name, 0) > last}
        self._dtypes.update((name, array.dtype) for name, array in kept.items())
        may_wait = self._noise_is_off and self._at_hand.isdisjoint(kept)
        if kept and may_wait and not self._cache.swap(number, finished, kept):
            if len(passed) <= MOST_AGAIN:
                return
        elif kept and may_wait:
            finished, kept = [], {}
        for name in finished:  # before the results take their place
            self._cache.drop(number, name)
        self._cache.put(number, kept)
        self._begins[number] = last + 1

    def array(self, number: int, name: str) -> Array:
        """A tensor of one run: an input of the graph, or what an earlier stage or a marker left."""
        if name in self._inputs:
            return self._batches[number % len(self._batches)][name]
        return self._cache.get(number, name)

    def samples_of(self, number: int) -> int:
        """How many samples a run has."""
        return samples_in(self._batches[number % len(self._batches)])

    def _make_noise(self, stage: Stage[Item], number: int) -> None:
        """Caches what the markers make of one run; a draw depends on the seed, marker, repeat and sample alone."""
        repeat, batch = divmod(number, len(self._batches))
        for marker in stage.markers:
            values = self.array(number, marker.node.inputs[0].name)
            first, count = self._first_samples[batch], self.samples_of(number)
            own = range(first, first + count) if len(values) % count == 0 else range(first, first + 1)
            rngs = generators_of((self._seed, marker.number, repeat, sample) for sample in own)
            noisy = {marker.node.outputs[0].name: apply_noise(marker.noise, values, rngs)}
            self._dtypes |= {name: array.dtype for name, array in noisy.items()}
            self._cache.put(number, noisy)

    def _part(self, stage: Stage[Any], nodes: Sequence[gs.Node], outputs: Sequence[gs.Variable]) -> onnx.ModelProto:
        """The model of one stage."""
        before_noise = {marker.node.outputs[0].name: marker.node.inputs[0].name for marker in stage.markers}
        for name, tensor in stage.reads.items():
            if isinstance(tensor, gs.Variable):
                source = before_noise.get(name, name)  # noise keeps the dtype
                tensor.dtype = self._batches[0][source].dtype if source in self._inputs else self._dtypes[source]
        return export_subgraph(self._graph, nodes, stage.reads.values(), outputs)
