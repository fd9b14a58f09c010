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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes import progress
from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm, find_modules
from vsfix.graph_passes.errors import DataError, ModelError
from vsfix.graph_passes.ir.runtime import Array, Float64Array, OpenModel
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.graph_passes.statistics.batches import Batch, count_samples, cut_batches, prescribed_batch_size, take_rows
from vsfix.graph_passes.statistics.moments import Moments, MomentsAccumulator, SampleMoments

from .activation_cache import DEFAULT_MAX_MEMORY, ActivationCache
from .moment_taps import tap_moments
from .staged_run import StagedRun
from .staging import MOST_NODES, Stage, Target, noisy_markers, plan_stages

# Samples of one run. Activations that stay in the processor's cache make a pass over them cheap, and several runs keep
# several processors busy; but each run has a price of its own. What runs at once is in memory beside the cache: large
# inputs make small runs.
LARGEST_RUN, SMALLEST_RUN, LEAST_RUNS = 64, 8, 8
SMALL_INPUT, LARGEST_INPUT = 1 << 17, 4 << 20  # bytes of the inputs of one run
SMALL_SAMPLE = 1 << 8  # bytes of a sample that costs less than what is around its run: a row of a table

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
        The moments by the name of the BatchNorm, in the order of the graph. Those of a module that is used several
        times are pooled over its uses, of which the others stand beside it under names of their own. A sample's group
        depends on its place in the set alone, so that two measurements of one set can be compared group by group.

    Raises:
        DataError: no batches, or values that are not finite.
        ModelError: a BatchNorm that normalises a constant.
    """
    config = config or MeasurementConfig()
    if not batches:
        raise DataError("the calibration set is empty; give at least one sample")
    copy = graph.copy()
    hold_constants(copy)
    if config.noise_seed is None:
        RemoveMarkers()(copy)  # at each that a tap reads the runtime would copy an activation
    if prescribed_batch_size(copy) is None:
        batches = list(cut_batches(batches, run_size(batches, len(copy.nodes))))
    modules = find_modules(copy)
    markers = noisy_markers(copy) if config.noise_seed is not None else []
    targets = [
        Target(
            module,
            tuple(use.input for use in module.uses),
            tuple(use.node for use in module.uses) if module.name in config.corrected else (),
        )
        for module in modules
    ]
    moments: dict[str, Moments] = {}
    with ActivationCache(config.max_memory) as cache:
        run = StagedRun(copy, batches, open_model, cache, config.noise_seed or 0, config.repeats)
        parts = plan_stages(copy, targets, markers)
        runs = len(parts) * len(batches) * config.repeats
        with progress.stage("measuring what each BatchNorm sees", runs) as measuring:
            for stage in run.stages(parts):
                moments |= _measure_stage(run, stage, copy.opset, measuring)
                for target in stage.measured:
                    if target.cuts:
                        target.item.with_statistics(*config.correction(target.item, moments[target.item.name]))
    return {use.name: moments[use.name] for module in modules for use in module.uses}


def run_size(batches: Sequence[Batch], nodes: int = 0) -> int:
    """How many samples to run at once; it depends on the data and the graph alone, so that any machine does the same.

    Args:
        batches: the data.
        nodes: of the graph; of many nodes a run has a price that small inputs don't repay.
    """
    sample = sum(array.nbytes for array in take_rows(batches[0], slice(1)).values())
    fewest = LARGEST_RUN if sample <= SMALL_SAMPLE else SMALLEST_RUN
    wanted = min(LARGEST_RUN, max(fewest, math.ceil(count_samples(batches) / LEAST_RUNS)))
    if nodes > MOST_NODES:
        wanted = max(wanted, SMALL_INPUT // max(sample, 1))
    return max(1, min(wanted, LARGEST_INPUT // max(sample, 1)))


def hold_constants(graph: gs.Graph) -> None:
    """Turns Constant nodes into constants, which every stage has without caching them."""
    for node in graph.nodes:
        value = node.attrs.get("value") if node.op == "Constant" else None
        if isinstance(value, gs.Constant):
            output = node.outputs[0]
            node.outputs.clear()
            output.to_constant(value.values)
    graph.nodes[:] = [node for node in graph.nodes if node.op != "Constant" or node.outputs]


class MomentsReader:
    """Reads the moments of BatchNorm inputs from runs that compute them.

    Args:
        modules: whose inputs are measured.
        opset: of the graph that is run.
        computed: the tensors that the run computes; the other inputs are at hand as arrays. None for all that no input
            of the graph is.

    Attributes:
        nodes: to be run with those of the graph.
        outputs: what they give out.

    Raises:
        ModelError: a BatchNorm that normalises a constant.
    """

    def __init__(self, modules: Sequence[BatchNorm], opset: int, computed: Collection[str] | None = None) -> None:
        self._modules = modules
        self._uses = [use for module in modules for use in module.uses]
        for use in self._uses:
            if isinstance(use.input, gs.Constant):
                raise ModelError(f"BatchNorm '{use.name}' normalises a constant; fold the constants of the model first")
        self._taps = {
            use.input.name: tap_moments(use.input, opset)
            for use in self._uses
            if (use.input.inputs if computed is None else use.input.name in computed)
        }
        self._accumulators = {use.name: MomentsAccumulator() for use in self._uses}
        self.nodes = [node for tap in self._taps.values() for node in tap.nodes]
        self.outputs = [output for tap in self._taps.values() for output in tap.outputs]

    def read(self, arrays: Mapping[str, Array], samples: int, array: Callable[[str], Array]) -> list[SampleMoments]:
        """The moments in one run; may be called from several threads.

        Args:
            arrays: what the runtime gave out, by name.
            samples: how many the run has.
            array: gives a tensor that is at hand, by its name.

        Raises:
            DataError: values that are not finite; the message names the BatchNorm.
        """
        return [self._of_use(use, arrays, samples, array) for use in self._uses]

    def _of_use(
        self, use: BatchNorm, arrays: Mapping[str, Array], samples: int, array: Callable[[str], Array]
    ) -> SampleMoments:
        """The moments of one input."""
        name = use.input.name
        try:
            found = self._taps[name].read(arrays) if name in self._taps else SampleMoments.of(array(name))
            return found.of_samples(samples)
        except DataError as error:
            raise DataError(f"the input of BatchNorm '{use.name}': {error}") from error

    def add(self, first: int, found: Sequence[SampleMoments]) -> None:
        """Adds what was read of one run, whose first sample has that number in the set."""
        for use, moments in zip(self._uses, found, strict=True):
            self._accumulators[use.name].add(moments, first)

    def result(self) -> dict[str, Moments]:
        """The moments by the name of the BatchNorm, those of a module that is used several times pooled."""
        results = {name: accumulator.result() for name, accumulator in self._accumulators.items()}
        for module in self._modules:
            if module.others:
                results[module.name] = Moments.pooled([results[use.name] for use in module.uses])
        return results


def _measure_stage(
    run: StagedRun, stage: Stage[BatchNorm], opset: int, measuring: progress.Stage
) -> dict[str, Moments]:
    """The moments of the inputs that a stage computes, by the name of the BatchNorm."""
    computed = {tensor.name for node in stage.nodes for tensor in node.outputs}
    reader = MomentsReader([target.item for target in stage.measured], opset, computed)

    def read(number: int, arrays: Mapping[str, Array]) -> list[SampleMoments]:
        return reader.read(arrays, run.samples_of(number), partial(run.array, number))

    for first, found in run.run_stage(stage, reader.nodes, reader.outputs, read):
        reader.add(first, found)
        measuring.step()
    return reader.result()
