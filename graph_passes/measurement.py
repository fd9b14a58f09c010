"""The real statistics of every BatchNorm input over a calibration set, each measured behind corrected predecessors.

A BatchNorm input depends on how the BatchNorms in front of it normalise. Where those are to be corrected too, tapping
all of them in one run measures the wrong network. The right one is the network in which each corrected BatchNorm
already normalises with the statistics of the whole set; it equals one forward of the set as a single batch with those
BatchNorms in batch-statistics mode, and it is computed here in stages without ever holding such a batch:

    stage of a tensor = the number of corrected BatchNorms, and of markers whose noise is on, on the longest way to it
    stage s: apply the noise of its markers; run its nodes over all batches, from the activations cached by earlier
             stages; measure every BatchNorm input of the stage; write the measured statistics; cache what later
             stages read.

Each node runs once per batch, so the total work is one forward. Only the frontier between stages is held.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from .activation_cache import DEFAULT_MAX_MEMORY, ActivationCache
from .batch_norm import BatchNorm, find_batch_norms
from .errors import DataError, ModelError
from .inference import Array, OpenModel, Runner
from .marker import marker_label, read_marker
from .model_file import export_subgraph
from .moments import Moments
from .noise import Noise
from .noise_sampling import apply_noise
from .tensors import Tensor, consumed_tensors

Batch = Mapping[str, Array]


@dataclass(frozen=True)
class MeasurementConfig:
    """How a measurement runs.

    Attributes:
        corrected: names of the BatchNorms that normalise with the statistics measured here; the others keep theirs.
        noise_seed: None runs the network as deployed; a number switches the noise of every marker on.
        max_memory: bytes of cached activations to hold in memory.
    """

    corrected: Collection[str] = ()
    noise_seed: int | None = None
    max_memory: int = DEFAULT_MAX_MEMORY


@dataclass(frozen=True, eq=False)
class _NoisyMarker:
    """A marker whose noise is on, and its number in the graph."""

    number: int
    node: gs.Node
    noise: Noise


@dataclass
class _Stage:
    """What happens in one stage.

    Attributes:
        markers: put noise on what earlier stages cached, before the nodes run.
        nodes: what the runtime runs.
        reads: the tensors that the nodes take from earlier stages, from the markers, or from the graph's inputs.
        hands_on: the tensors that later stages read, by the stage that has them first.
        measured: the BatchNorms whose input is known after this stage.
    """

    markers: list[_NoisyMarker] = field(default_factory=list)
    nodes: list[gs.Node] = field(default_factory=list)
    reads: dict[str, Tensor] = field(default_factory=dict)
    hands_on: dict[str, Tensor] = field(default_factory=dict)
    measured: list[BatchNorm] = field(default_factory=list)


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
        The moments by the name of the BatchNorm, in the order of the graph.

    Raises:
        DataError: no batches, or values that are not finite.
    """
    config = config or MeasurementConfig()
    if not batches:
        raise DataError("the calibration set is empty; give at least one sample")
    copy = graph.copy()
    batch_norms = find_batch_norms(copy)
    for batch_norm in batch_norms:
        if isinstance(batch_norm.input, gs.Constant):
            raise ModelError(
                f"BatchNorm '{batch_norm.name}' normalises a constant; fold the constants of the model first"
            )
    markers = _noisy_markers(copy) if config.noise_seed is not None else []
    stages = _plan(copy, batch_norms, frozenset(config.corrected), markers)
    moments: dict[str, Moments] = {}
    needed = _needed_inputs(copy, stages)
    with ActivationCache(config.max_memory) as cache:
        for number, batch in enumerate(batches):
            cache.put(number, {name: batch[name] for name in needed})
        for index, stage in enumerate(stages):
            _make_noise(stage, len(batches), config.noise_seed, cache)
            moments |= _run_stage(copy, stage, len(batches), open_model, cache)
            for batch_norm in stage.measured:
                if batch_norm.name in config.corrected:
                    _correct(batch_norm, moments[batch_norm.name])
            _drop_finished(cache, stages, index, len(batches))
    return {batch_norm.name: moments[batch_norm.name] for batch_norm in batch_norms}


def _correct(batch_norm: BatchNorm, found: Moments) -> None:
    """Writes what was measured; a channel that no estimate will touch keeps what it will be deployed with."""
    kept = found.degenerate | (batch_norm.variance <= 0)
    batch_norm.with_statistics(
        np.where(kept, batch_norm.mean, found.mean), np.where(kept, batch_norm.variance, found.variance)
    )


def _noisy_markers(graph: gs.Graph) -> list[_NoisyMarker]:
    """Every marker of the graph, numbered in its order."""
    found = [(node, read_marker(node)) for node in graph.nodes]
    marking = [(node, noise) for node, noise in found if noise is not None]
    for node, _ in marking:
        if isinstance(node.inputs[0], gs.Constant):
            raise ModelError(
                f"Dropout '{marker_label(node)}' stands on a weight, and that noise can't be repeated here: "
                "re-estimate with --method exact --layers all"
            )
    return [_NoisyMarker(number, node, noise) for number, (node, noise) in enumerate(marking)]


def _plan(
    graph: gs.Graph, batch_norms: Sequence[BatchNorm], corrected: Collection[str], markers: Sequence[_NoisyMarker]
) -> list[_Stage]:
    """Sorts the nodes that lead to a BatchNorm input into stages."""
    correcting = {id(batch_norm.node) for batch_norm in batch_norms if batch_norm.name in corrected}
    noisy = {id(marker.node): marker for marker in markers}
    stage_of: dict[int, int] = {}
    stages: list[_Stage] = [_Stage()]
    for node in _nodes_leading_to(graph, [batch_norm.input for batch_norm in batch_norms]):
        number = max((stage_of.get(id(tensor), 0) for tensor in consumed_tensors(node)), default=0)
        number += id(node) in correcting or id(node) in noisy
        while len(stages) <= number:
            stages.append(_Stage())
        if id(node) in noisy:
            stages[number].markers.append(noisy[id(node)])
        else:
            stages[number].nodes.append(node)
        stage_of.update((id(tensor), number) for tensor in node.outputs)
    for batch_norm in batch_norms:
        stages[stage_of.get(id(batch_norm.input), 0)].measured.append(batch_norm)
    _connect(stages, stage_of, {id(tensor) for tensor in graph.inputs})
    return stages


def _connect(stages: Sequence[_Stage], stage_of: Mapping[int, int], graph_inputs: Collection[int]) -> None:
    """Finds what each stage reads from those before it, and so what each hands on."""
    for number, stage in enumerate(stages):
        made_here = {id(marker.node.outputs[0]) for marker in stage.markers}
        for tensor in (tensor for node in stage.nodes for tensor in consumed_tensors(node)):
            source = stage_of.get(id(tensor), number)
            if source < number:
                stages[source].hands_on[tensor.name] = tensor
            if source < number or id(tensor) in graph_inputs or id(tensor) in made_here:
                stage.reads[tensor.name] = tensor
        for marker in stage.markers:
            data = marker.node.inputs[0]
            if id(data) in stage_of:
                stages[stage_of[id(data)]].hands_on[data.name] = data


def _nodes_leading_to(graph: gs.Graph, targets: Iterable[Tensor]) -> list[gs.Node]:
    """The nodes, in order, from which one of `targets` is computed."""
    wanted = {id(tensor) for tensor in targets}
    leading: list[gs.Node] = []
    for node in reversed(graph.nodes):
        if any(id(tensor) in wanted for tensor in node.outputs):
            leading.append(node)
            wanted.update(id(tensor) for tensor in consumed_tensors(node))
    leading.reverse()
    return leading


def _needed_inputs(graph: gs.Graph, stages: Sequence[_Stage]) -> list[str]:
    """The names of the graph inputs that a stage reads or a BatchNorm normalises."""
    names = {name for stage in stages for name in _wanted(stage)}
    names |= {name for stage in stages for name in _inputs_of(stage)}
    return [tensor.name for tensor in graph.inputs if tensor.name in names]


def _wanted(stage: _Stage) -> set[str]:
    """The names of the tensors that must be cached when a stage begins, or are made by its own markers."""
    return set(stage.reads) | {marker.node.inputs[0].name for marker in stage.markers}


def _make_noise(stage: _Stage, batches: int, seed: int | None, cache: ActivationCache) -> None:
    """Caches the output of every marker of a stage; the draws depend on the seed, the marker and the batch alone."""
    for marker in stage.markers:
        data, output = marker.node.inputs[0].name, marker.node.outputs[0].name
        for number in range(batches):
            rng = np.random.default_rng((seed or 0, marker.number, number))
            cache.put(number, {output: apply_noise(marker.noise, cache.get(number, data), rng)})


def _run_stage(
    graph: gs.Graph, stage: _Stage, batches: int, open_model: OpenModel, cache: ActivationCache
) -> dict[str, Moments]:
    """Runs one stage over every batch; returns the moments of the BatchNorms whose input it computes."""
    produced = {tensor.name: tensor for node in stage.nodes for tensor in node.outputs}
    outputs = [name for name in {**stage.hands_on, **dict.fromkeys(_inputs_of(stage))} if name in produced]
    cached = [name for name in _inputs_of(stage) if name not in produced]
    moments: dict[str, Moments] = {}
    with ExitStack() as stack:
        runner: Runner | None = None
        if outputs:
            for name, tensor in stage.reads.items():
                if isinstance(tensor, gs.Variable):
                    tensor.dtype = cache.get(0, name).dtype
            part = export_subgraph(graph, stage.nodes, stage.reads.values(), [produced[name] for name in outputs])
            runner = stack.enter_context(open_model(part))
        for number in range(batches):
            arrays = runner.run({name: cache.get(number, name) for name in stage.reads}) if runner else {}
            _add_moments(moments, stage.measured, arrays | {name: cache.get(number, name) for name in cached})
            cache.put(number, {name: arrays[name] for name in stage.hands_on if name in produced})
    return moments


def _inputs_of(stage: _Stage) -> list[str]:
    """The names of the tensors that are measured after a stage."""
    return [batch_norm.input.name for batch_norm in stage.measured]


def _add_moments(moments: dict[str, Moments], batch_norms: Sequence[BatchNorm], arrays: Mapping[str, Array]) -> None:
    """Adds one batch to the moments of each BatchNorm."""
    for batch_norm in batch_norms:
        try:
            batch = Moments.of(arrays[batch_norm.input.name])
        except DataError as error:
            raise DataError(f"the input of BatchNorm '{batch_norm.name}': {error}") from error
        earlier = moments.get(batch_norm.name)
        moments[batch_norm.name] = batch if earlier is None else earlier.merge(batch)


def _drop_finished(cache: ActivationCache, stages: Sequence[_Stage], index: int, batches: int) -> None:
    """Frees what no later stage reads."""
    later = {name for stage in stages[index + 1 :] for name in _wanted(stage)}
    made = {marker.node.outputs[0].name for marker in stages[index].markers}
    for name in (_wanted(stages[index]) | made) - later:
        for number in range(batches):
            cache.drop(number, name)
