"""Runs parts of a graph over a calibration set; what a part reads was left in the cache by those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.io.model_file import export_subgraph
from vsfix.graph_passes.ir.graph import Tensor, consumed_tensors
from vsfix.graph_passes.ir.runtime import Array, OpenModel, side_by_side
from vsfix.graph_passes.measurement.activation_cache import ActivationCache
from vsfix.graph_passes.measurement.moment_taps import tap_moments
from vsfix.graph_passes.statistics.batches import Batch, samples_in
from vsfix.graph_passes.statistics.moments import Moments, MomentsAccumulator, SampleMoments

GROUPS = 16  # of the samples: few enough that each has some of them, enough for a jackknife

Feed = Mapping[str, Array]
RunPart = Callable[[Sequence[int], Callable[[int], Feed]], dict[str, Moments]]


class Activations:
    """What is known of each batch: the inputs of the graph, and what parts of it have left.

    Args:
        batches: the calibration set.
        cache: holds what parts leave.
    """

    def __init__(self, batches: Sequence[Batch], cache: ActivationCache) -> None:
        self._batches = batches
        self._cache = cache
        self._held: set[str] = set()
        self._first: list[int] = [0, *np.cumsum([samples_in(batch) for batch in batches]).tolist()]

    @property
    def numbers(self) -> range:
        """The numbers of the batches."""
        return range(len(self._batches))

    def first(self, number: int) -> int:
        """The number of a batch's first sample."""
        return self._first[number]

    def samples(self, number: int) -> int:
        """How many samples a batch has."""
        return self._first[number + 1] - self._first[number]

    def few(self, samples: int) -> range:
        """The first batches that hold so many samples."""
        return range(min(int(np.searchsorted(self._first, samples)), len(self._batches)))

    def get(self, number: int, name: str) -> Array:
        """A tensor of one batch; what was put takes the place of an input of the graph."""
        return self._cache.get(number, name) if name in self._held else self._batches[number][name]

    def __contains__(self, name: str) -> bool:
        return name in self._held or name in self._batches[0]

    def put(self, number: int, name: str, array: Array) -> None:
        """Keeps a tensor of one batch, in the place of what is held by this name."""
        if name in self._held:
            self._cache.drop(number, name)
        self._cache.put(number, {name: array})

    def hold(self, name: str) -> None:
        """Says that every batch has a tensor of this name in the cache now."""
        self._held.add(name)

    def forget(self, name: str) -> None:
        """Drops a tensor of every batch, if it is held."""
        if name in self._held:
            self._held.remove(name)
            for number in self.numbers:
                self._cache.drop(number, name)

    def moments(self, name: str, numbers: Sequence[int]) -> Moments:
        """The moments of a tensor that is at hand.

        Raises:
            DataError: a value that is not finite.
        """
        found = MomentsAccumulator(GROUPS)
        for number in numbers:
            found.add(SampleMoments.of(self.get(number, name)).of_samples(self.samples(number)), self.first(number))
        return found.result()


def tensors_read(nodes: Sequence[gs.Node]) -> list[gs.Variable]:
    """What nodes take from elsewhere, each tensor once."""
    own = {id(tensor) for node in nodes for tensor in node.outputs}
    read = (tensor for node in nodes for tensor in consumed_tensors(node))
    return list(
        {
            id(tensor): tensor
            for tensor in read
            if isinstance(tensor, gs.Variable) and not tensor.is_empty() and id(tensor) not in own
        }.values()
    )


class Parts:
    """Runs nodes of a graph, with what they read from the activations and what they leave in them.

    Args:
        graph: of the nodes.
        open_model: the runtime.
        activations: of the calibration set.

    Attributes:
        shapes: of the tensors that were asked for, by the number of samples in the batch and the name.
    """

    def __init__(self, graph: gs.Graph, open_model: OpenModel, activations: Activations) -> None:
        self.shapes: dict[int, dict[str, tuple[int, ...]]] = {}
        self._graph = graph
        self._open_model = open_model
        self.activations = activations

    @contextmanager
    def open(
        self,
        nodes: Sequence[gs.Node],
        *,
        fed: Sequence[gs.Variable] = (),
        kept: Mapping[str, gs.Variable] | None = None,
        measured: Sequence[Tensor] = (),
        shaped: Sequence[Tensor] = (),
    ) -> Iterator[RunPart]:
        """Opens some nodes.

        Args:
            nodes: in topological order.
            fed: what is given with each run.
            kept: what is left in the activations, by the name there.
            measured: the tensors whose moments are returned, by their names.
            shaped: the tensors whose shapes are noted.

        Yields:
            What runs the nodes over some batches, each with what is fed.
        """
        taps = {tensor.name: tap_moments(tensor, self._graph.opset) for tensor in measured}
        keep = dict(kept or {})
        tapped = [output for tap in taps.values() for output in tap.outputs]
        shapes = {tensor.name: gs.Variable(f"{tensor.name}#shape", dtype=np.int64) for tensor in shaped}
        readers = [gs.Node("Shape", inputs=[one], outputs=[shapes[one.name]]) for one in shaped]
        outputs = {id(tensor): tensor for tensor in [*keep.values(), *tapped, *shapes.values()]}
        given = {tensor.name for tensor in fed}
        reads = [tensor for tensor in self._read(nodes) if tensor.name not in given]
        tap_nodes = [*readers, *(node for tap in taps.values() for node in tap.nodes)]
        model = export_subgraph(self._graph, [*nodes, *tap_nodes], [*reads, *fed], outputs.values())
        for node in tap_nodes:
            node.inputs.clear()  # else they are readers of what they measure
        with self._open_model(model) as runner:

            def one(number: int, feed: Callable[[int], Feed]) -> dict[str, SampleMoments]:
                known = {tensor.name: self.activations.get(number, tensor.name) for tensor in reads}
                arrays = runner.run({**known, **feed(number)})
                for name, tensor in keep.items():
                    self.activations.put(number, name, arrays[tensor.name])
                samples = self.activations.samples(number)
                if shapes:
                    sides = {name: tuple(int(side) for side in arrays[one.name]) for name, one in shapes.items()}
                    self.shapes.setdefault(samples, {}).update(sides)
                return {name: tap.read(arrays).of_samples(samples) for name, tap in taps.items()}

            def run(numbers: Sequence[int], feed: Callable[[int], Feed]) -> dict[str, Moments]:
                found = {name: MomentsAccumulator(GROUPS) for name in taps}
                results = side_by_side(lambda number: one(number, feed), numbers, runner.concurrency)
                for number, result in zip(numbers, results, strict=True):
                    for name, moments in result.items():
                        found[name].add(moments, self.activations.first(number))
                for name in keep:
                    self.activations.hold(name)
                return {name: accumulator.result() for name, accumulator in found.items()}

            yield run

    def _read(self, nodes: Sequence[gs.Node]) -> list[gs.Variable]:
        """What nodes read, with the types that it has."""
        reads = tensors_read(nodes)
        for tensor in reads:
            if tensor.name in self.activations:
                tensor.dtype = self.activations.get(0, tensor.name).dtype
        return reads
