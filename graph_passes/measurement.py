"""The real statistics of every BatchNorm input over a calibration set, each measured behind corrected predecessors.

A BatchNorm input depends on how the BatchNorms in front of it normalise. Where those are to be corrected too, tapping
all of them in one run measures the wrong network. The right one is the network in which each corrected BatchNorm
already normalises with what the whole set gave; with the measured statistics written as they are it equals one forward
of the set as a single batch with those BatchNorms in batch-statistics mode. It is computed here in the stages of
`staging`, without ever holding such a batch:

    stage s: apply the noise of its markers; run its nodes over all batches, from the activations cached by earlier
             stages; measure every BatchNorm input of the stage; write the corrected statistics; cache what later
             stages read.

Each node runs once per batch, so the total work is one forward. Only the frontier between stages is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from .activation_cache import DEFAULT_MAX_MEMORY, ActivationCache
from .batch_norm import BatchNorm, find_batch_norms
from .batches import Batch, count_samples, cut_batches, prescribed_batch_size, samples_in
from .errors import DataError, ModelError
from .inference import Array, Float64Array, OpenModel
from .model_file import export_subgraph
from .moment_taps import MomentTap, tap_moments
from .moments import Moments, MomentsAccumulator, SampleMoments
from .noise_sampling import apply_noise
from .remove_identities import RemoveMarkers
from .staging import Stage, noisy_markers, plan_stages

# Samples of one run. Activations that stay in the processor's cache make a pass over them cheap, and several runs keep
# several processors busy; but each run has a price of its own. What runs at once is in memory beside the cache: large
# inputs make small runs.
LARGEST_RUN, SMALLEST_RUN, LEAST_RUNS = 64, 8, 8
LARGEST_INPUT = 4 << 20  # bytes of the inputs of one run

_Result = TypeVar("_Result")

# What a corrected BatchNorm normalises with, given what it stores and what was measured: (mean, variance), each (C,).
Correction = Callable[[BatchNorm, Moments], tuple[Float64Array, Float64Array]]


def as_measured(stored: BatchNorm, found: Moments) -> tuple[Float64Array, Float64Array]:
    """The correction that takes what was measured; a channel without a usable variance keeps what it stores."""
    kept = found.degenerate | (stored.variance <= 0)
    return np.where(kept, stored.mean, found.mean), np.where(kept, stored.variance, found.variance)


@dataclass(frozen=True)
class MeasurementConfig:
    """How a measurement runs.

    Attributes:
        corrected: names of the BatchNorms that normalise with the statistics measured here; the others keep theirs.
        noise_seed: None runs the network as deployed; a number switches the noise of every marker on.
        repeats: how often the set is run, under other draws each time; more than 1 only with the noise on.
        max_memory: bytes that the process may hold; activations beyond go to the disk.
        correction: what a corrected BatchNorm writes.
    """

    corrected: Collection[str] = ()
    noise_seed: int | None = None
    repeats: int = 1
    max_memory: int = DEFAULT_MAX_MEMORY
    correction: Correction = as_measured


def measure(
    graph: gs.Graph, batches: Sequence[Batch], open_model: OpenModel, config: MeasurementConfig | None = None
) -> dict[str, Moments]:
    """Measures the moments of every BatchNorm input.

    Args:
        graph: not changed.
        batches: the calibration set; per batch one array for each graph input, batch first. Sizes may differ.
        open_model: opens a part of the graph in a runtime.
        config: what is corrected, and whether the noise is on.

    Returns:
        The moments by the name of the BatchNorm, in the order of the graph. A sample's group depends on its place in
        the set alone, so that two measurements of one set can be compared group by group.

    Raises:
        DataError: no batches, or values that are not finite.
        ModelError: a BatchNorm that normalises a constant.
    """
    config = config or MeasurementConfig()
    if not batches:
        raise DataError("the calibration set is empty; give at least one sample")
    copy = graph.copy()
    _hold_constants(copy)
    if config.noise_seed is None:
        RemoveMarkers()(copy)  # at each that a tap reads the runtime would copy an activation
        if prescribed_batch_size(copy) is None:  # with the noise on, the draws depend on the batches
            batches = list(cut_batches(batches, run_size(batches)))
    batch_norms = find_batch_norms(copy)
    for batch_norm in batch_norms:
        if isinstance(batch_norm.input, gs.Constant):
            raise ModelError(
                f"BatchNorm '{batch_norm.name}' normalises a constant; fold the constants of the model first"
            )
    markers = noisy_markers(copy) if config.noise_seed is not None else []
    stages = plan_stages(copy, batch_norms, frozenset(config.corrected), markers)
    moments: dict[str, Moments] = {}
    with ActivationCache(config.max_memory) as cache:
        run = _StagedRun(copy, batches, open_model, config, cache)
        for index, stage in enumerate(stages):
            later = {name for following in stages[index + 1 :] for name in following.wanted}
            moments |= run.run_stage(stage, later)
            for batch_norm in stage.measured:
                if batch_norm.name in config.corrected:
                    batch_norm.with_statistics(*config.correction(batch_norm, moments[batch_norm.name]))
    return {batch_norm.name: moments[batch_norm.name] for batch_norm in batch_norms}


def run_size(batches: Sequence[Batch]) -> int:
    """How many samples to run at once; it depends on nothing but the data, so that any machine does the same."""
    sample = sum(array.nbytes for array in batches[0].values()) / samples_in(batches[0])
    wanted = min(LARGEST_RUN, max(SMALLEST_RUN, math.ceil(count_samples(batches) / LEAST_RUNS)))
    return max(1, min(wanted, int(LARGEST_INPUT // max(sample, 1))))


def _hold_constants(graph: gs.Graph) -> None:
    """Turns Constant nodes into constants, which every stage has without caching them."""
    for node in graph.nodes:
        value = node.attrs.get("value") if node.op == "Constant" else None
        if isinstance(value, gs.Constant):
            output = node.outputs[0]
            node.outputs.clear()
            output.to_constant(value.values)
    graph.nodes[:] = [node for node in graph.nodes if node.op != "Constant" or node.outputs]


def _side_by_side(work: Callable[[int], _Result], numbers: Iterable[int], concurrency: int) -> Iterator[_Result]:
    """The results of `work` in the order of the numbers; where one fails, those that wait are not begun."""
    if concurrency == 1:
        yield from map(work, numbers)
    else:
        with ThreadPoolExecutor(concurrency) as pool:
            yield from pool.map(work, numbers)


class _StagedRun:
    """One pass over the stages: what is fed to each, and what is kept between them."""

    def __init__(
        self,
        graph: gs.Graph,
        batches: Sequence[Batch],
        open_model: OpenModel,
        config: MeasurementConfig,
        cache: ActivationCache,
    ) -> None:
        self._graph = graph
        self._batches = batches
        self._open_model = open_model
        self._seed = config.noise_seed
        self._cache = cache
        self._inputs = {tensor.name for tensor in graph.inputs}
        self._runs = range(len(batches) * config.repeats)  # a run is one batch under one draw of the noise
        self._first_samples = [0, *np.cumsum([samples_in(batch) for batch in batches])[:-1].tolist()]

    def run_stage(self, stage: Stage, later: Collection[str]) -> dict[str, Moments]:
        """Runs one stage over every batch, the noise first.

        Args:
            stage: what to run.
            later: the names of the tensors that later stages read.

        Returns:
            The moments of the inputs that it computes, by the name of the BatchNorm.
        """
        finished = (stage.wanted | stage.made_by_markers).difference(later, self._inputs)
        produced = {tensor.name: tensor for node in stage.nodes for tensor in node.outputs}
        handed_on = [produced[name] for name in stage.hands_on if name in produced]
        taps = {
            batch_norm.input.name: tap_moments(batch_norm.input, self._graph.opset)
            for batch_norm in stage.measured
            if batch_norm.input.name in produced
        }
        accumulators = {batch_norm.name: MomentsAccumulator() for batch_norm in stage.measured}
        with ExitStack() as stack:
            runner = None
            if handed_on or taps:
                runner = stack.enter_context(self._open_model(self._part(stage, handed_on, taps)))

            def run(number: int) -> list[SampleMoments]:
                self._make_noise(stage, number)
                arrays = runner.run({name: self._array(number, name) for name in stage.reads}) if runner else {}
                moments = [self._sample_moments(batch_norm, taps, arrays, number) for batch_norm in stage.measured]
                for name in finished:  # before the results take their place
                    self._cache.drop(number, name)
                self._cache.put(number, {tensor.name: arrays[tensor.name] for tensor in handed_on})
                return moments

            results = _side_by_side(run, self._runs, runner.concurrency if runner else 1)
            for number, found in zip(self._runs, results, strict=True):
                first = self._first_samples[number % len(self._batches)]
                for batch_norm, moments in zip(stage.measured, found, strict=True):
                    accumulators[batch_norm.name].add(moments, first)
        return {name: accumulator.result() for name, accumulator in accumulators.items()}

    def _make_noise(self, stage: Stage, number: int) -> None:
        """Caches what the markers make of one run; the draws depend on the seed, the marker and the run alone."""
        for marker in stage.markers:
            rng = np.random.default_rng((self._seed or 0, marker.number, number))
            noisy = apply_noise(marker.noise, self._array(number, marker.node.inputs[0].name), rng)
            self._cache.put(number, {marker.node.outputs[0].name: noisy})

    def _array(self, number: int, name: str) -> Array:
        """A tensor of one run: an input of the graph, or what an earlier stage or a marker left."""
        if name in self._inputs:
            return self._batches[number % len(self._batches)][name]
        return self._cache.get(number, name)

    def _part(self, stage: Stage, handed_on: Sequence[gs.Variable], taps: Mapping[str, MomentTap]) -> onnx.ModelProto:
        """The model of one stage."""
        before_noise = {marker.node.outputs[0].name: marker.node.inputs[0].name for marker in stage.markers}
        for name, tensor in stage.reads.items():
            if isinstance(tensor, gs.Variable):
                tensor.dtype = self._array(0, before_noise.get(name, name)).dtype  # noise keeps the dtype
        nodes = [*stage.nodes, *(node for tap in taps.values() for node in tap.nodes)]
        outputs = [*handed_on, *(output for tap in taps.values() for output in tap.outputs)]
        return export_subgraph(self._graph, nodes, stage.reads.values(), outputs)

    def _sample_moments(
        self, batch_norm: BatchNorm, taps: Mapping[str, MomentTap], arrays: Mapping[str, Array], number: int
    ) -> SampleMoments:
        """The moments of a BatchNorm input in one run: from its tap, or from the array that is at hand."""
        name = batch_norm.input.name
        try:
            found = taps[name].read(arrays) if name in taps else SampleMoments.of(self._array(number, name))
            return found.of_samples(samples_in(self._batches[number % len(self._batches)]))
        except DataError as error:
            raise DataError(f"the input of BatchNorm '{batch_norm.name}': {error}") from error
