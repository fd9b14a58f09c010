"""Runs a graph stage by stage over a whole calibration set, and holds between the stages what later ones read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.io.model_file import export_subgraph
from vsfix.graph_passes.ir.runtime import Array, OpenModel, side_by_side
from vsfix.graph_passes.noise.sampling import apply_noise, generators_of
from vsfix.graph_passes.statistics.batches import Batch, samples_in

from .activation_cache import ActivationCache
from .staging import Item, Stage

_Result = TypeVar("_Result")


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
        self._last_use: Mapping[str, int] = {}
        self._current = 0

    def stages(self, stages: Sequence[Stage[Item]]) -> Iterator[Stage[Item]]:
        """The stages in order; each must be run before the next is asked for."""
        self._last_use = {name: index for index, stage in enumerate(stages) for name in stage.wanted}
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
        held = (stage.wanted | stage.made_by_markers).difference(self._inputs)
        finished = [name for name in held if self._last_use.get(name, 0) <= self._current]
        produced = {tensor.name: tensor for node in stage.nodes for tensor in node.outputs}
        handed_on = [produced[name] for name in stage.hands_on if name in produced]
        with ExitStack() as stack:
            runner = None
            if handed_on or tap_outputs:
                model = self._part(stage, [*stage.nodes, *tap_nodes], [*handed_on, *tap_outputs])
                runner = stack.enter_context(self._open_model(model))

            def run(number: int) -> _Result:
                self._make_noise(stage, number)
                arrays = runner.run({name: self.array(number, name) for name in stage.reads}) if runner else {}
                found = read(number, arrays)
                for name in finished:  # before the results take their place
                    self._cache.drop(number, name)
                self._cache.put(number, {tensor.name: arrays[tensor.name] for tensor in handed_on})
                return found

            results = side_by_side(run, self._runs, runner.concurrency if runner else 1)
            for number, found in zip(self._runs, results, strict=True):
                yield self._first_samples[number % len(self._batches)], found

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
            self._cache.put(number, {marker.node.outputs[0].name: apply_noise(marker.noise, values, rngs)})

    def _part(self, stage: Stage[Item], nodes: Sequence[gs.Node], outputs: Sequence[gs.Variable]) -> onnx.ModelProto:
        """The model of one stage."""
        before_noise = {marker.node.outputs[0].name: marker.node.inputs[0].name for marker in stage.markers}
        for name, tensor in stage.reads.items():
            if isinstance(tensor, gs.Variable):
                tensor.dtype = self.array(0, before_noise.get(name, name)).dtype  # noise keeps the dtype
        return export_subgraph(self._graph, nodes, stage.reads.values(), outputs)
