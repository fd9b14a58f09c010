"""The network that was trained: the average of the deployed one over its noise, F(x) = E_n f(x; n).

f(x; n) has the noise on and normalises with the statistics of the file, which are true under that noise. It runs as
one session, what is upstream of all noise in another: each marker becomes X = scale x + offset, and scale and offset
are inputs, drawn outside of the runtime (`sampling`). So every kind of noise, opset, data type and provider has the
same noise, and a run costs one forward and the draws. One seed for each sample, draw and marker makes a draw
independent of everything else that is run: batch size, order, and memory change no bit of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_modules
from vsfix.graph_passes.io.model_file import export_subgraph
from vsfix.graph_passes.ir.element_types import code_of, state_types
from vsfix.graph_passes.ir.graph import Tensor
from vsfix.graph_passes.ir.runtime import Array, OpenModel, side_by_side
from vsfix.graph_passes.measurement.measurement import MomentsReader
from vsfix.graph_passes.measurement.staging import NoisyMarker, noisy_markers
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.graph_passes.noise.sampling import draw_by_sample, generators_of
from vsfix.graph_passes.statistics.batches import samples_in
from vsfix.graph_passes.statistics.moments import Moments, SampleMoments

from .samples import SampleSet
from .taps import PositionTap, concrete_shapes
from .upstream import ComputedOnce, SplitGraph, reached_by, split_at_noise

FORWARDS = 4096  # samples times draws of the noise
DRAWS = (4, 16)  # the fewest and the most
MOST_DRAWS = 64  # of a network that costs next to nothing
COSTLY = 6e11  # multiplications of all draws, past which fewer than the usual are made
CHEAP = 2e9  # multiplications of all draws, up to which more than the usual are made


@dataclass(frozen=True, eq=False)
class _FedNoise:
    """A marker whose noise is fed.

    Attributes:
        marker: what is drawn.
        rows: of the batch axis for one sample; 0 where the samples do not lie on the first axis.
        data: the name of the tensor that it reads.
        scale: the graph input.
        offset: the same; None for the multiplicative kinds.
    """

    marker: NoisyMarker
    rows: int
    data: str
    scale: gs.Variable
    offset: gs.Variable | None


@dataclass(frozen=True)
class Run:
    """What one batch gave under one draw: the number of the draw, the first sample, and the arrays by name."""

    draw: int
    first: int
    arrays: Mapping[str, Array]


class NoiseAverage:
    """F of one network.

    Args:
        graph: with its markers; not changed.
        samples: what it is run on.
        open_model: the runtime.
        seed: of the noise.
        room: bytes that may be held of what is upstream of the noise, from one call of `runs` to the next.

    Attributes:
        shapes: of every tensor in a run of the first batch, by name.
    """

    def __init__(
        self, graph: gs.Graph, samples: SampleSet, open_model: OpenModel, seed: int = 0, room: int = 0
    ) -> None:
        self._graph = graph.copy()
        state_types(self._graph)
        self._samples = samples
        self._open_model = open_model
        self._seed = seed
        self._room = room
        self._held: dict[frozenset[str], dict[int, dict[str, Array]]] = {}
        last = {samples_in(batch): batch for batch in samples.batches}
        self._shapes = {size: concrete_shapes(self._graph, batch, open_model) for size, batch in last.items()}
        self.shapes = self._shapes[samples_in(samples.batches[0])]
        self._fed = [self._feed(marker) for marker in noisy_markers(self._graph)]
        self._tensors = self._graph.tensors()

    @property
    def has_noise(self) -> bool:
        """Whether the graph marks any noise; without, F is the deployed network."""
        return bool(self._fed)

    def tensor(self, name: str) -> gs.Variable:
        """A tensor of the copy that is run, to make a tap on."""
        found = self._tensors[name]
        assert isinstance(found, gs.Variable)
        return found

    def runs(
        self, draws: Sequence[int], taps: Sequence[PositionTap] = (), moments: MomentsReader | None = None
    ) -> Iterator[Run]:
        """Runs every draw over every batch; the batches of one draw come in their order.

        Args:
            draws: their numbers; a number stands for the same noise each time.
            taps: on tensors of `tensor`; what they give out stands beside the outputs of the graph.
            moments: of `moments_reader`; filled in from the first of the draws.
        """
        nodes = [node for tap in taps for node in tap.nodes]
        outputs = [*self._graph.outputs, *(tap.output for tap in taps)]
        if moments is not None and moments.outputs:
            measured = self._runs(draws[:1], [*nodes, *moments.nodes], [*outputs, *moments.outputs])
            for run in measured:
                batch = self._samples.batches[self._samples.first.index(run.first)]
                moments.add(run.first, moments.read(run.arrays, samples_in(batch), batch.__getitem__))
                yield run
            draws = draws[1:]
        if draws:
            yield from self._runs(draws, nodes, outputs)

    def moments_reader(self, *, of_all: bool = True) -> MomentsReader:
        """Reads the moments of every BatchNorm input with the noise on; each BatchNorm normalises with what it stores.

        Args:
            of_all: also of those that no noise reaches, whose moments are those with the noise off.

        Raises:
            ModelError: a BatchNorm that normalises a constant.
        """
        modules = list(find_modules(self._graph))
        if not of_all:
            noisy = reached_by(self._graph.nodes, self._noise)
            modules = [module for module in modules if any(id(use.input) in noisy for use in module.uses)]
        return MomentsReader(modules, self._graph.opset)

    @property
    def reached_outputs(self) -> frozenset[str]:
        """The names of the outputs that are downstream of noise."""
        noisy = reached_by(self._graph.nodes, self._noise)
        return frozenset(tensor.name for tensor in self._graph.outputs if id(tensor) in noisy)

    @property
    def _noise(self) -> list[gs.Variable]:
        """The inputs that are drawn."""
        return [tensor for fed in self._fed for tensor in (fed.scale, fed.offset) if tensor is not None]

    def moments(self) -> dict[str, Moments]:
        """The moments of every BatchNorm input with the noise on, in one draw; by the name of the BatchNorm."""
        reader = self.moments_reader()
        for _ in self.runs([0], moments=reader):
            pass
        return reader.result() if reader.outputs else {}

    def _runs(
        self, draws: Sequence[int], tap_nodes: Sequence[gs.Node], outputs: Sequence[gs.Variable]
    ) -> Iterator[Run]:
        """Runs the network with its noise as inputs, and the nodes of taps: every draw of a batch, then the next."""
        noise = self._noise
        parts = split_at_noise(self._graph, [*self._graph.nodes, *tap_nodes], outputs, noise)
        first, batches = self._samples.first, self._samples.batches
        numbers = [(draw, batch) for batch in range(len(batches)) for draw in draws]
        with ExitStack() as stack:
            upstream = self._upstream(parts, len(draws), stack)
            read = [*parts.inputs, *parts.handed_on, *noise]
            model = export_subgraph(self._graph, parts.downstream, read, parts.outputs)
            runner = stack.enter_context(self._open_model(model))

            def run(number: int) -> Run:
                draw, index = numbers[number]
                batch, known = batches[index], upstream.of(index)
                feeds = {tensor.name: batch[tensor.name] for tensor in parts.inputs}
                feeds |= {tensor.name: known[tensor.name] for tensor in parts.handed_on}
                keys = self._samples.keys[first[index] : first[index] + samples_in(batch)]
                for fed in self._fed:
                    feeds |= self._draw(fed, draw, keys)
                given = {tensor.name: known[tensor.name] for tensor in parts.given}
                return Run(draw, first[index], given | runner.run(feeds))

            yield from side_by_side(run, range(len(numbers)), runner.concurrency)

    def _upstream(self, parts: SplitGraph, uses: int, stack: ExitStack) -> ComputedOnce:
        """What the part upstream of the noise gives out, for each batch."""
        batches = self._samples.batches
        if not parts.upstream:
            return ComputedOnce(lambda _: {}, len(batches), uses)
        wanted = {tensor.name: tensor for tensor in (*parts.handed_on, *parts.given)}
        held = self._held.setdefault(frozenset(wanted), {})
        if len(held) == len(batches):
            return ComputedOnce(held.__getitem__, len(batches), uses)
        model = export_subgraph(self._graph, parts.upstream, self._graph.inputs, wanted.values())
        runner = stack.enter_context(self._open_model(model))

        def compute(number: int) -> dict[str, Array]:
            if number in held:
                return held[number]
            found = runner.run({tensor.name: batches[number][tensor.name] for tensor in self._graph.inputs})
            size = sum(array.nbytes for array in found.values())
            if size <= self._room:
                self._room -= size
                held[number] = found
            return found

        return ComputedOnce(compute, len(batches), uses)

    def forget(self) -> None:
        """Drops what is held between calls of `runs`."""
        self._held.clear()
        self._room = 0

    def _feed(self, marker: NoisyMarker) -> _FedNoise:
        """Puts scale x + offset in the place of a marker."""
        node = marker.node
        data, output, *masks = node.inputs[0], *node.outputs
        name = f"vsfix.noise_{marker.number}"
        position = next(index for index, other in enumerate(self._graph.nodes) if other is node)
        node.outputs.clear()
        node.inputs.clear()
        scale = gs.Variable(f"{name}.scale", dtype=np.float32)
        offset = None if marker.noise.is_multiplicative else gs.Variable(f"{name}.offset", dtype=np.float32)
        replacing: list[gs.Node] = []

        def typed(tensor: gs.Variable) -> gs.Variable:
            if data.dtype is None or np.dtype(data.dtype) == np.float32:  # numpy finds float64 and None equal
                return tensor
            cast = gs.Variable(f"{tensor.name}.cast", dtype=data.dtype)
            replacing.append(gs.Node("Cast", attrs={"to": code_of(data.dtype)}, inputs=[tensor], outputs=[cast]))
            return cast

        product = output if offset is None else gs.Variable(f"{name}.product", dtype=data.dtype)
        replacing.append(gs.Node("Mul", inputs=[data, typed(scale)], outputs=[product]))
        if offset is not None:
            replacing.append(gs.Node("Add", inputs=[product, typed(offset)], outputs=[output]))
        for mask in masks:
            replacing.append(gs.Node("Cast", attrs={"to": onnx.TensorProto.BOOL}, inputs=[scale], outputs=[mask]))
        self._graph.nodes[position : position + 1] = replacing
        return _FedNoise(marker, self._rows(data.name), data.name, scale, offset)

    def _rows(self, name: str) -> int:
        """How many rows of the first axis belong to each sample; 0 where that is not so."""
        found = {(shapes[name][0] / size, shapes[name][1:]) for size, shapes in self._shapes.items() if shapes[name]}
        rows = next(iter(found))[0] if len(found) == 1 else 0.0
        return int(rows) if rows.is_integer() else 0

    def _draw(self, fed: _FedNoise, draw: int, keys: Sequence[tuple[int, ...]]) -> dict[str, Array]:
        """The noise of one marker for the samples of one batch."""
        shape = self._shapes[len(keys)][fed.data]
        if fed.rows:
            shape = (fed.rows, *shape[1:])
        else:  # one draw for the whole run
            keys = keys[:1]
        rngs = generators_of((self._seed, fed.marker.number, draw, *key) for key in keys)
        scale, offset = draw_by_sample(fed.marker.noise, shape, rngs)
        feeds: dict[str, Array] = {fed.scale.name: scale}
        if fed.offset is not None and offset is not None:
            feeds[fed.offset.name] = offset
        return feeds


@dataclass(frozen=True)
class DeployedRun:
    """A network with its noise off, f(x; 1), over all samples.

    Attributes:
        outputs: by name; left out is what does not hold one row, or as many rows, for each sample: a scalar, a shape,
            indices.
        moments: of every BatchNorm input, by the name of the BatchNorm.
    """

    outputs: Mapping[str, Array]
    moments: Mapping[str, Moments]


class Watch(Protocol):
    """What looks at inner tensors of a deployed network while it runs."""

    def taps(self, tensor: Callable[[str], Tensor]) -> Sequence[PositionTap]:
        """Taps on the tensors that `tensor` gives by their names in the graph with its markers."""
        ...

    def add(self, first: int, arrays: Mapping[str, Array]) -> None:
        """Takes what a run gave out, whose first sample has that number."""
        ...


def run_deployed(graph: gs.Graph, samples: SampleSet, open_model: OpenModel, watch: Watch | None = None) -> DeployedRun:
    """Runs a network with its noise off.

    Args:
        graph: not changed.
        samples: what it is run on.
        open_model: the runtime.
        watch: looks at inner tensors.

    Raises:
        DataError: the input of a BatchNorm that is not finite.
        ModelError: a BatchNorm that normalises a constant.
    """
    copy = graph.copy()
    producers = {tensor.name: (node, index) for node in copy.nodes for index, tensor in enumerate(node.outputs)}
    RemoveMarkers()(copy)

    def written(name: str) -> Tensor:  # a marker that wrote an output left its name to the tensor upstream
        node, index = producers[name]
        tensor: Tensor = node.outputs[index]
        return tensor

    reader = MomentsReader(find_modules(copy), copy.opset)
    taps = [] if watch is None else list(watch.taps(written))
    nodes = [*copy.nodes, *reader.nodes, *(node for tap in taps for node in tap.nodes)]
    outputs = [*copy.outputs, *reader.outputs, *(tap.output for tap in taps)]
    with open_model(export_subgraph(copy, nodes, copy.inputs, outputs)) as runner:
        kept = [tensor.name for tensor in (*copy.outputs, *(tap.output for tap in taps))]

        def run(number: int) -> tuple[Mapping[str, Array], list[SampleMoments]]:
            batch = samples.batches[number]
            arrays = runner.run({tensor.name: batch[tensor.name] for tensor in copy.inputs})
            found = reader.read(arrays, samples_in(batch), batch.__getitem__)
            return {name: arrays[name] for name in kept}, found

        parts: dict[str, list[Array]] = {tensor.name: [] for tensor in copy.outputs}
        results = side_by_side(run, range(len(samples.batches)), runner.concurrency)
        for first, (arrays, found) in zip(samples.first, results, strict=True):
            reader.add(first, found)
            for name, held in parts.items():
                held.append(arrays[name])
            if watch is not None:
                watch.add(first, arrays)
    sizes = [samples_in(batch) for batch in samples.batches]
    whole = {name: np.concatenate(found) for name, found in parts.items() if _holds_samples(found, sizes)}
    return DeployedRun(whole, reader.result())


def _holds_samples(parts: Sequence[Array], sizes: Sequence[int]) -> bool:
    """Whether arrays, one for each run, hold the same number of rows of one shape for each sample."""
    if any(np.ndim(part) < 1 for part in parts):
        return False
    rows = {(len(part) / size, np.shape(part)[1:]) for part, size in zip(parts, sizes, strict=True)}
    return len(rows) == 1 and next(iter(rows))[0].is_integer() and next(iter(rows))[0] > 0


def draws_for(samples: int, cost: float) -> int:
    """How many draws of the noise so many samples take: an even number, by a rule that no clock decides.

    Args:
        samples: N.
        cost: multiplications of one sample's forward.
    """
    one = max(samples * cost, 1.0)
    usual = np.clip(FORWARDS // max(samples, 1), *DRAWS)
    affordable = max(DRAWS[0], COSTLY / one)
    cheap = np.clip(CHEAP / one, 0, MOST_DRAWS)
    return int(max(min(usual, affordable), cheap)) // 2 * 2
