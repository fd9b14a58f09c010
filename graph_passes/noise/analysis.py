"""Which noise reaches which BatchNorm, through what, and at what distance.

The noise of a source spreads forward along the graph. Its distance to a BatchNorm input is the farthest kind of step
on the nearest path:

    direct      every element of the BN input is one noisy element: only reshapes, transposes, casts lie between.
                The shift follows from the stored statistics alone.
    linear      a linear map lies between (Conv, Gemm, mean pooling, sums, concatenation): the noise is averaged,
                its mean kept.
    downstream  a non-linearity or another BatchNorm lies between: no closed form, the shift must be measured.

Where several paths lead to a BatchNorm, the one of least distance counts, and among those the shortest. What stands in
the bodies of If, Loop and Scan is looked at too: a marker there is a source, and a BatchNorm there has its own answer.
See `noise_spread` for how the noise is followed; its cost grows with the number of nodes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import overload

import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm, find_modules
from vsfix.graph_passes.ir.graph import upstream_constant

from .marker import marker_label
from .noise import Noise
from .propagation import NOWHERE, SHAPE_READERS, Distance, Found, NoisePropagation, PassedNode, State, joined

__all__ = ["SHAPE_READERS", "Distance", "NoiseMap", "NoisePath", "NoisePaths", "NoiseSource", "analyse_noise"]


@dataclass(frozen=True)
class NoiseSource:
    """A marker in the graph.

    Attributes:
        name: the node's name without its tag.
        tensor: the name of the tensor that carries the noise.
        noise: its kind and parameter.
        body: the name of the control-flow node in whose body it stands, outer ones in front with a slash between; empty
            for a marker in the main graph. The noise of a marker in a body can't be switched on by a measurement.
    """

    name: str
    tensor: str
    noise: Noise
    body: str = ""


@dataclass(frozen=True)
class NoisePath:
    """The nearest way from a source to a BatchNorm.

    Attributes:
        source: where the noise comes from.
        distance: the farthest kind of step on the way.
    """

    source: NoiseSource
    distance: Distance
    _spread: NoisePropagation = field(repr=False, compare=False)
    _number: int = field(repr=False, compare=False)
    _target: int = field(repr=False, compare=False)

    @property
    def nodes(self) -> tuple[PassedNode, ...]:
        """The nodes between, in order; found when asked for, at the cost of one sweep."""
        return self._spread.trace(self._number, self._target)

    @property
    def through(self) -> tuple[str, ...]:
        """The operators of `nodes`."""
        return tuple(node.operator for node in self.nodes)


class NoisePaths(Sequence[NoisePath]):
    """The paths that reach one BatchNorm, made one by one when they are asked for.

    Nearest first: by distance, and at the same distance the source that stands later in the graph.
    """

    def __init__(self, spread: NoisePropagation, sources: Sequence[NoiseSource], targets: Sequence[int]) -> None:
        self._spread = spread
        self._sources = sources
        self._targets = targets
        self._state: State = joined([spread.states.get(target, NOWHERE) for target in targets])

    def at(self, distance: Distance) -> tuple[NoisePath, ...]:
        """The paths of one distance."""
        return tuple(self._paths(distance))

    def _paths(self, distance: Distance) -> Iterator[NoisePath]:
        """The paths of one distance, the last source first."""
        bits = self._state[distance]
        while bits:
            number = bits.bit_length() - 1
            bits ^= 1 << number
            states = {target: self._spread.states.get(target, NOWHERE) for target in self._targets}
            target = next(target for target, state in states.items() if state[distance] >> number & 1)
            yield NoisePath(self._sources[number], distance, self._spread, number, target)

    def __iter__(self) -> Iterator[NoisePath]:
        for distance in Distance:
            yield from self._paths(distance)

    def __len__(self) -> int:
        return sum(bits.bit_count() for bits in self._state)

    @overload
    def __getitem__(self, index: int) -> NoisePath: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[NoisePath, ...]: ...

    def __getitem__(self, index: int | slice) -> NoisePath | tuple[NoisePath, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"there are {len(self)} paths, not {index + 1}")
        return next(islice(self, position, None))


@dataclass(frozen=True)
class NoiseMap:
    """The noise of a whole graph.

    Attributes:
        sources: every marker, in the order of the graph; those in bodies stand where their control-flow node does.
        reaching: for each BatchNorm of the main graph, by its name and in the order of the graph, the paths that reach
            its input, or one of them where a module is used several times; the other uses have entries of their own
            beside it. None at all means that no noise reaches it.
        in_subgraphs: the same for each BatchNorm in a body of If, Loop or Scan, which no repair touches.
    """

    sources: tuple[NoiseSource, ...]
    reaching: dict[str, NoisePaths]
    in_subgraphs: dict[str, NoisePaths] = field(default_factory=dict)

    @property
    def reached(self) -> frozenset[str]:
        """The names of the BatchNorms of the main graph that any noise reaches."""
        return frozenset(name for name, paths in self.reaching.items() if paths)

    @property
    def reached_in_subgraphs(self) -> frozenset[str]:
        """The names of the BatchNorms in bodies that any noise reaches."""
        return frozenset(name for name, paths in self.in_subgraphs.items() if paths)


def analyse_noise(graph: gs.Graph) -> NoiseMap:
    """Finds every noise source and the BatchNorms that it reaches.

    Args:
        graph: nodes in topological order, as the ONNX standard demands; not changed.

    Raises:
        ModelError: a marker or a BatchNorm that can't be read, or one in training form.
    """
    modules = find_modules(graph)
    spread = NoisePropagation(graph)
    sources = tuple(
        NoiseSource(marker_label(found.node), found.node.outputs[0].name, found.noise, found.owner)
        for found in spread.sources
        if found.noise is not None
    )
    reaching: dict[str, NoisePaths] = {}
    for module in modules:
        reaching |= {use.name: NoisePaths(spread, sources, [id(use.input)]) for use in module.uses}
        reaching[module.name] = NoisePaths(spread, sources, [id(use.input) for use in module.uses])
    in_subgraphs: dict[str, NoisePaths] = {}
    for found in spread.batch_norms:
        name = _name_in_subgraph(found)
        while name in in_subgraphs:
            name = f"{name}_"
        in_subgraphs[name] = NoisePaths(spread, sources, [id(found.node.inputs[0])])
    return NoiseMap(sources, reaching, in_subgraphs)


def _name_in_subgraph(found: Found) -> str:
    """The module's name where the stored mean has it, else the node's or its output's; behind that of its body."""
    mean = upstream_constant(found.node.inputs[3])
    module, _, tail = ("", "", "") if mean is None else str(mean.name).rpartition(".")
    return f"{found.owner}/{module if tail == 'running_mean' and module else marker_label(found.node)}"


@dataclass(frozen=True)
class TracedPath:
    """The nearest way of noise to one BatchNorm, and the nodes in front of it and behind it.

    Attributes:
        source: the name of the noise layer.
        noise: what it does, as `dropout:0.5`.
        distance: `direct`, `linear` or `downstream`.
        batch_norm: the name of the BatchNorm.
        before: the nodes that make what the noise is put on; empty where it is an input of the graph.
        through: the nodes between the noise layer and the BatchNorm, in order; empty where it stands directly in front.
        behind: the nodes that read what the BatchNorm gives.
    """

    source: str
    noise: str
    distance: str
    batch_norm: str
    before: tuple[PassedNode, ...]
    through: tuple[PassedNode, ...]
    behind: tuple[PassedNode, ...]


def traced_path(graph: gs.Graph, batch_norm: BatchNorm, path: NoisePath) -> TracedPath:
    """Looks a path up in its graph.

    Args:
        graph: in which both stand; not changed.
        batch_norm: what the noise reaches.
        path: the way; one of the BatchNorm's in `analyse_noise(graph)`.
    """
    # A source in the body of a control-flow node is not among these nodes, and nothing is drawn in front of it.
    markers = [node for node in graph.nodes if node.outputs and node.outputs[0].name == path.source.tensor]
    return TracedPath(
        source=path.source.name,
        noise=str(path.source.noise),
        distance=str(path.distance),
        batch_norm=batch_norm.name,
        before=tuple(PassedNode.of(node) for marker in markers for node in marker.inputs[0].inputs),
        through=path.nodes,
        behind=tuple(PassedNode.of(node) for node in batch_norm.output.outputs),
    )
