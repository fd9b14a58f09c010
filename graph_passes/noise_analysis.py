"""Which noise reaches which BatchNorm, through what, and at what distance.

The noise of a source spreads forward along the graph. Its distance to a BatchNorm input is the farthest kind of step
on the nearest path:

    direct      every element of the BN input is one noisy element: only reshapes, transposes, casts lie between.
                The shift follows from the stored statistics alone.
    linear      a linear map lies between (Conv, Gemm, mean pooling, sums, concatenation): the noise is averaged,
                its mean kept.
    downstream  a non-linearity or another BatchNorm lies between: no closed form, the shift must be measured.

Where several paths lead to a BatchNorm, the one of least distance counts, and among those the shortest. Operators that
read only the shape of a tensor stop the noise. An operator that is not known counts as a non-linearity, so that noise
is never overlooked.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import onnx_graphsurgeon as gs

from .batch_norm import find_batch_norms
from .marker import marker_label, read_marker, require_switched_off
from .noise import Noise
from .tensors import consumed_tensors

ELEMENTWISE_COPIES = frozenset(
    "Identity Cast Reshape Flatten Squeeze Unsqueeze Transpose Dropout Slice Gather Split".split()
)
LINEAR_MAPS = frozenset(
    "Conv ConvTranspose Gemm MatMul AveragePool GlobalAveragePool ReduceMean ReduceSum Mean Sum Add Sub Neg Pad Expand "
    "Tile Concat DepthToSpace SpaceToDepth".split()
)
LINEAR_IN_ONE_OPERAND = frozenset("Mul Div Conv ConvTranspose Gemm MatMul".split())
SHAPE_READERS = frozenset("Shape Size ConstantOfShape RandomUniformLike RandomNormalLike EyeLike".split())


class Distance(IntEnum):
    """How far the noise is from the BatchNorm that it reaches; the smaller, the nearer."""

    DIRECT = 0
    LINEAR = 1
    DOWNSTREAM = 2

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class NoiseSource:
    """A marker in the graph.

    Attributes:
        name: the node's name without its tag.
        tensor: the name of the tensor that carries the noise.
        noise: its kind and parameter.
    """

    name: str
    tensor: str
    noise: Noise


@dataclass(frozen=True)
class NoisePath:
    """The nearest way from a source to a BatchNorm.

    Attributes:
        source: where the noise comes from.
        distance: the farthest kind of step on the way.
        through: the operators between, as `Op` names, in order.
    """

    source: NoiseSource
    distance: Distance
    through: tuple[str, ...]


@dataclass(frozen=True)
class NoiseMap:
    """The noise of a whole graph.

    Attributes:
        sources: every marker, in the order of the graph.
        reaching: for each BatchNorm, by its name and in the order of the graph, the paths that reach its input,
            nearest first. An empty tuple means that no noise reaches it.
    """

    sources: tuple[NoiseSource, ...]
    reaching: dict[str, tuple[NoisePath, ...]]

    @property
    def reached(self) -> frozenset[str]:
        """The names of the BatchNorms that any noise reaches."""
        return frozenset(name for name, paths in self.reaching.items() if paths)


@dataclass(frozen=True)
class _Arrival:
    """How noise arrives at a tensor: ordered by distance, then by the number of steps."""

    distance: Distance
    steps: int
    node: gs.Node | None = None
    before: _Arrival | None = None

    def nearer_than(self, other: _Arrival) -> bool:
        return (self.distance, self.steps) < (other.distance, other.steps)


def analyse_noise(graph: gs.Graph) -> NoiseMap:
    """Finds every noise source and the BatchNorms that it reaches.

    Args:
        graph: nodes in topological order, as the ONNX standard demands.

    Raises:
        ModelError: a marker or a BatchNorm that can't be read.
    """
    batch_norms = find_batch_norms(graph)
    sources: list[NoiseSource] = []
    arrivals: list[dict[int, _Arrival]] = []
    for position, node in enumerate(graph.nodes):
        require_switched_off(node)
        noise = read_marker(node)
        if noise is not None:
            sources.append(NoiseSource(marker_label(node), node.outputs[0].name, noise))
            arrivals.append(_spread(graph, position))
    reaching: dict[str, tuple[NoisePath, ...]] = {}
    for batch_norm in batch_norms:
        key = id(batch_norm.input)
        paths = [
            NoisePath(source, arrived[key].distance, _operators(arrived[key]))
            for source, arrived in zip(sources, arrivals, strict=True)
            if key in arrived
        ]
        reaching[batch_norm.name] = tuple(sorted(paths, key=lambda path: (path.distance, len(path.through))))
    return NoiseMap(tuple(sources), reaching)


def _spread(graph: gs.Graph, start: int) -> dict[int, _Arrival]:
    """Follows the noise of the marker at position `start` to the end of the graph; keys are ids of tensors."""
    arrived = {id(graph.nodes[start].outputs[0]): _Arrival(Distance.DIRECT, 0)}
    for node in graph.nodes[start + 1 :]:
        noisy = [arrived[id(tensor)] for tensor in consumed_tensors(node) if id(tensor) in arrived]
        if not noisy or node.op in SHAPE_READERS:
            continue
        best = noisy[0]
        for other in noisy[1:]:
            best = other if other.nearer_than(best) else best
        distance = max(best.distance, _step(node, len(noisy)))
        for tensor in node.outputs:
            arrived[id(tensor)] = _Arrival(distance, best.steps + 1, node, best)
    return arrived


def _step(node: gs.Node, noisy_inputs: int) -> Distance:
    """The distance that one node adds to noise that arrives at `noisy_inputs` of its inputs."""
    if node.domain not in (None, "", "ai.onnx"):
        return Distance.DOWNSTREAM
    if node.op in ELEMENTWISE_COPIES:
        return Distance.DIRECT
    if node.op in LINEAR_IN_ONE_OPERAND:
        return Distance.LINEAR if noisy_inputs == 1 else Distance.DOWNSTREAM
    return Distance.LINEAR if node.op in LINEAR_MAPS else Distance.DOWNSTREAM


def _operators(arrival: _Arrival) -> tuple[str, ...]:
    """The operators on the way, from the source on."""
    operators: list[str] = []
    step: _Arrival | None = arrival
    while step is not None and step.node is not None:
        operators.append(step.node.op)
        step = step.before
    return tuple(reversed(operators))
