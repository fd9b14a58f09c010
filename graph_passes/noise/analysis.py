"""The noise that reaches each BatchNorm, its path, and its distance.

The noise of a source propagates downstream. Its distance to a BatchNorm input is the farthest kind of step on the
nearest path:

    direct      every element of the BN input is one noisy element: only reshapes, transposes, casts lie between.
                The shift follows from the stored statistics alone.
    linear      a linear map lies between (Conv, Gemm, mean pooling, sums, concatenation): the noise is averaged,
                its mean unchanged.
    downstream  a non-linearity or another BatchNorm lies between: no closed form, the shift must be measured.

Where several paths lead to a BatchNorm, the one of least distance counts, and among those the shortest. The
subgraphs of If, Loop and Scan are searched too: a marker there is a source, and a BatchNorm there has its own answer.
`propagation` follows the noise; its cost grows with the number of nodes alone.
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
        owner: the name of the control-flow node in whose subgraph it stands, after those of outer ones with a slash
            between; empty for a marker in the main graph. No measurement can switch on the noise of a subgraph.
    """

    name: str
    tensor: str
    noise: Noise
    owner: str = ""


@dataclass(frozen=True)
class NoisePath:
    """The nearest path from a source to a BatchNorm.

    Attributes:
        source: where the noise comes from.
        distance: the farthest kind of step on the path.
    """

    source: NoiseSource
    distance: Distance
    _propagation: NoisePropagation = field(repr=False, compare=False)
    _number: int = field(repr=False, compare=False)
    _target: int = field(repr=False, compare=False)

    @property
    def nodes(self) -> tuple[PassedNode, ...]:
        """The nodes between, in order; found when asked for, at the cost of one sweep."""
        return self._propagation.trace(self._number, self._target)

    @property
    def through(self) -> tuple[str, ...]:
        """The operators of `nodes`."""
        return tuple(node.operator for node in self.nodes)


class NoisePaths(Sequence[NoisePath]):
    """The paths that reach one BatchNorm, made one by one when they are asked for.

    Nearest first: by distance, and at the same distance the source that stands later in the graph.
    """

    def __init__(self, propagation: NoisePropagation, sources: Sequence[NoiseSource], targets: Sequence[int]) -> None:
        self._propagation = propagation
        self._sources = sources
        self._targets = targets
        self._state: State = joined([propagation.states.get(target, NOWHERE) for target in targets])

    def at(self, distance: Distance) -> tuple[NoisePath, ...]:
        """The paths of one distance."""
        return tuple(self._paths(distance))

    def _paths(self, distance: Distance) -> Iterator[NoisePath]:
        """The paths of one distance, the last source first."""
        bits = self._state[distance]
        while bits:
            number = bits.bit_length() - 1
            bits ^= 1 << number
            states = {target: self._propagation.states.get(target, NOWHERE) for target in self._targets}
            target = next(target for target, state in states.items() if state[distance] >> number & 1)
            yield NoisePath(self._sources[number], distance, self._propagation, number, target)

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
        sources: every marker, in the order of the graph; those in subgraphs stand where their control-flow node does.
        reaching: for each BatchNorm of the main graph, by its name and in the order of the graph, the paths that reach
            its input, or one of them where a module is used several times; the other uses have entries of their own
            beside it. None at all means that no noise reaches it.
        in_subgraphs: the same for each BatchNorm in a subgraph of If, Loop or Scan, which no repair touches.
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
        """The names of the BatchNorms in subgraphs that any noise reaches."""
        return frozenset(name for name, paths in self.in_subgraphs.items() if paths)


def analyse_noise(graph: gs.Graph) -> NoiseMap:
    """Finds every noise source and the BatchNorms that it reaches.

    Args:
        graph: nodes in topological order, as the ONNX standard demands; not changed.

    Raises:
        ModelError: a marker or a BatchNorm that can't be read, or one in training form.
    """
    modules = find_modules(graph)
    propagation = NoisePropagation(graph)
    sources = tuple(
        NoiseSource(marker_label(found.node), found.node.outputs[0].name, found.noise, found.owner)
        for found in propagation.sources
        if found.noise is not None
    )
    reaching: dict[str, NoisePaths] = {}
    for module in modules:
        reaching |= {use.name: NoisePaths(propagation, sources, [id(use.input)]) for use in module.uses}
        reaching[module.name] = NoisePaths(propagation, sources, [id(use.input) for use in module.uses])
    in_subgraphs: dict[str, NoisePaths] = {}
    for found in propagation.batch_norms:
        name = _name_in_subgraph(found)
        while name in in_subgraphs:
            name = f"{name}_"
        in_subgraphs[name] = NoisePaths(propagation, sources, [id(found.node.inputs[0])])
    return NoiseMap(sources, reaching, in_subgraphs)


def _name_in_subgraph(found: Found) -> str:
    """The label of its subgraph's owner, a slash, and the module's name from the stored mean, else its own label."""
    mean = upstream_constant(found.node.inputs[3])
    module, _, tail = ("", "", "") if mean is None else str(mean.name).rpartition(".")
    return f"{found.owner}/{module if tail == 'running_mean' and module else marker_label(found.node)}"


@dataclass(frozen=True)
class TracedPath:
    """The nearest path of noise to one BatchNorm, with the nodes upstream of the noise and downstream of the BatchNorm.

    Attributes:
        source: the name of the noise layer.
        noise: what it does, as `dropout:0.5`.
        distance: `direct`, `linear` or `downstream`.
        batch_norm: the name of the BatchNorm.
        before: the producers of the tensor that the noise is put on; none for an input of the graph.
        through: the nodes between the noise layer and the BatchNorm, in order; empty where it stands directly upstream.
        behind: the consumers of the BatchNorm's output.
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
        path: one of the BatchNorm's in `analyse_noise(graph)`.
    """
    # A source in a subgraph is not among these nodes, and nothing is drawn upstream of it.
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
