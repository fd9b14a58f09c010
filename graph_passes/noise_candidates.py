"""The places where a training run may have had noise, read off the repeated structure of a graph.

A network is built of blocks, and noise stands at the same place in each. Candidate tensors are what a BatchNorm reads,
what a linear layer (Conv, Gemm, MatMul) reads, and the branch that an Add or a Concat joins to the rest. They belong
together when the operators around them are the same:

    behind   from the tensor back to the nearest linear layer, Add or Concat
    ahead    from the tensor on to the nearest linear layer, Add or Concat, and the number of linear layers from there
             to the end of the block, which is the next Add or Concat

Only BatchNorm, linear layers, activations and joins count as operators here: pooling, reshaping and casts change
nothing about the place. One group is one hypothesis. A tensor from which no BatchNorm can be reached is no candidate:
noise there leaves no trace in the statistics, and does them no harm; nor is one of whole numbers, which a Concat joins
to the shape of a Reshape.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from .batch_norm import find_batch_norms, is_batch_norm
from .noise_insertion import holds_whole_numbers
from .noise_spread import SHAPE_READERS
from .tensors import Tensor, constant_behind, consumed_tensors

LINEAR_LAYERS = frozenset("Conv ConvTranspose Gemm MatMul".split())
SUMS = frozenset("Add Sum".split())
ACTIVATIONS = frozenset(
    "Relu LeakyRelu PRelu Elu Selu Celu Gelu Sigmoid Tanh HardSigmoid HardSwish Mish Softplus Softsign Swish Clip "
    "ThresholdedRelu".split()
)
_SPATIAL = frozenset("Conv ConvTranspose MaxPool AveragePool".split())
_FLAT = frozenset("Gemm MatMul Flatten Reshape GlobalAveragePool GlobalMaxPool ReduceMean".split())


@dataclass(frozen=True)
class CandidatePlace:
    """The same place in every block.

    Attributes:
        description: the place in words.
        tensors: the names of the tensors that would carry the noise, in the order of the graph.
        reached: the names of the BatchNorms that noise there reaches.
        spatial: whether the tensors have positions beside channels, so that dropping whole channels is another noise.
        branch: whether they are the branches that an Add joins to the rest, so that a whole branch may be dropped.
    """

    description: str
    tensors: tuple[str, ...]
    reached: frozenset[str]
    spatial: bool
    branch: bool = False

    def united_with(self, other: CandidatePlace) -> CandidatePlace:
        """Both places as one hypothesis."""
        return CandidatePlace(
            description=f"{self.description}, and {other.description}",
            tensors=tuple(dict.fromkeys(self.tensors + other.tensors)),
            reached=self.reached | other.reached,
            spatial=self.spatial and other.spatial,
        )


@dataclass(frozen=True)
class _Ahead:
    """What lies ahead of a tensor on its way through the block.

    Attributes:
        operators: up to the nearest linear layer or join.
        join: the operator that ends the block; empty where no join follows.
        layers: the linear layers before it; -1 where no join follows.
        shortcut: whether the way ends in an Add as the shorter of its operands.
    """

    operators: tuple[str, ...] = ()
    join: str = ""
    layers: int = -1
    shortcut: bool = False


Signature = tuple[tuple[str, ...], tuple[str, ...], int]


def find_candidate_places(graph: gs.Graph) -> tuple[CandidatePlace, ...]:
    """Groups the candidate tensors of a graph.

    Args:
        graph: nodes in topological order; without noise markers.

    Returns:
        The groups, those with the most tensors first, else in the order of the graph.
    """
    depths = _depths(graph)
    ahead = _look_ahead(graph, depths)
    groups = _group(graph, depths, ahead)
    texts = [_describe(signature, len(tensors)) for signature, tensors in groups.items()]
    places = [
        CandidatePlace(
            description=text + (_ordinal(signature) if texts.count(text) > 1 else ""),
            tensors=tuple(str(tensor.name) for tensor in tensors),
            reached=_reached(graph, tensors),
            spatial=_is_spatial(tensors[0]),
            branch=signature[1][:1] in {(op,) for op in SUMS},
        )
        for text, (signature, tensors) in zip(texts, groups.items(), strict=True)
    ]
    return tuple(sorted(places, key=lambda place: -len(place.tensors)))


def _group(graph: gs.Graph, depths: dict[int, int], ahead: dict[int, _Ahead]) -> dict[Signature, list[Tensor]]:
    """The candidate tensors by what is around them; what the first layer makes counts as the start of a block."""
    groups: dict[Signature, list[Tensor]] = {}
    starts: list[tuple[Signature, Signature]] = []
    for tensor in _candidates(graph, depths):
        way = ahead.get(id(tensor), _Ahead())
        behind = _operators_behind(tensor, depths)
        if way.shortcut:
            continue
        signature = (behind, way.operators, way.layers)
        groups.setdefault(signature, []).append(tensor)
        if way.join and behind and behind[0] in LINEAR_LAYERS and depths[id(tensor)] == 1:
            starts.append((signature, ((way.join, *behind[1:]), way.operators, way.layers)))
    for stem, block in starts:
        if stem in groups and len(groups[stem]) == 1 and block in groups:
            groups[block] = groups.pop(stem) + groups[block]
    return groups


def _candidates(graph: gs.Graph, depths: dict[int, int]) -> Iterator[Tensor]:
    """The tensors where noise may have stood, each once, in the order of their readers."""
    leading = _leading_to_batch_norms(graph)
    seen: set[int] = set()
    for node in graph.nodes:
        operands = _data(node)
        if is_batch_norm(node) or node.op in LINEAR_LAYERS:
            chosen = operands[:1]
        elif _is_join(node):
            chosen = [tensor for tensor in operands if depths[id(tensor)] == max(depths[id(t)] for t in operands)]
        else:
            continue
        for tensor in chosen:
            if id(tensor) in leading and id(tensor) not in seen and not holds_whole_numbers(tensor):
                seen.add(id(tensor))
                yield tensor


def _leading_to_batch_norms(graph: gs.Graph) -> set[int]:
    """The ids of the tensors from which a BatchNorm can be reached."""
    leading = {id(found.input) for found in find_batch_norms(graph)}
    for node in reversed(graph.nodes):
        if node.op not in SHAPE_READERS and any(id(tensor) in leading for tensor in node.outputs):
            leading.update(id(tensor) for tensor in consumed_tensors(node))
    return leading


def _data(node: gs.Node) -> list[Tensor]:
    """The inputs of a node that are computed or given, without its constants."""
    return [tensor for tensor in node.inputs if not tensor.is_empty() and constant_behind(tensor) is None]


def _is_join(node: gs.Node) -> bool:
    """Whether a node joins a branch to the rest."""
    return (node.op in SUMS or node.op == "Concat") and len(_data(node)) > 1


def _operator(node: gs.Node) -> str | None:
    """What a node counts as, or None where it changes nothing about the place."""
    if is_batch_norm(node):
        return "BatchNorm"
    counts = node.op in LINEAR_LAYERS or node.op in ACTIVATIONS or _is_join(node)
    return str(node.op) if counts else None


def _depths(graph: gs.Graph) -> dict[int, int]:
    """The number of linear layers on the longest way to each tensor, by its id."""
    depths = {id(tensor): 0 for tensor in graph.inputs}
    for node in graph.nodes:
        depth = max((depths.get(id(tensor), 0) for tensor in node.inputs), default=0) + (node.op in LINEAR_LAYERS)
        depths.update((id(tensor), depth) for tensor in node.outputs)
    return depths


def _look_ahead(graph: gs.Graph, depths: dict[int, int]) -> dict[int, _Ahead]:
    """What lies ahead of each tensor, by its id; of several ways the one with the most layers to the next join."""
    ahead: dict[int, _Ahead] = {}
    for node in reversed(graph.nodes):
        operands = _data(node)
        if node.op in SHAPE_READERS or not operands:
            continue
        deepest = max(depths.get(id(tensor), 0) for tensor in operands)
        for tensor in operands:
            shorter = node.op in SUMS and depths.get(id(tensor), 0) < deepest
            way = _step(node, [ahead.get(id(output), _Ahead()) for output in node.outputs], shorter)
            if id(tensor) not in ahead or way.layers > ahead[id(tensor)].layers:
                ahead[id(tensor)] = way
    return ahead


def _step(node: gs.Node, behind_it: list[_Ahead], shorter: bool) -> _Ahead:
    """The way through one node."""
    operator = _operator(node)
    if _is_join(node):
        return _Ahead((node.op,), node.op, 0, shorter)
    way = max(behind_it, key=lambda way: way.layers)
    if node.op in LINEAR_LAYERS:
        return _Ahead((node.op,), way.join, way.layers + bool(way.join), False)
    return _Ahead(((operator,) if operator else ()) + way.operators, way.join, way.layers, way.shortcut)


def _operators_behind(tensor: Tensor, depths: dict[int, int]) -> tuple[str, ...]:
    """The operators from the nearest linear layer or join to the tensor, in the order in which they run."""
    operators: list[str] = []
    while tensor.inputs:
        node = tensor.inputs[0]
        operator = _operator(node)
        if operator:
            operators.append(operator)
        operands = _data(node)
        if node.op in LINEAR_LAYERS or _is_join(node) or not operands:
            break
        tensor = max(operands, key=lambda operand: depths.get(id(operand), 0))
    return tuple(reversed(operators))


def _reached(graph: gs.Graph, tensors: Collection[Tensor]) -> frozenset[str]:
    """The names of the BatchNorms that noise on any of the tensors reaches."""
    noisy = {id(tensor) for tensor in tensors}
    for node in graph.nodes:
        if node.op not in SHAPE_READERS and any(id(tensor) in noisy for tensor in consumed_tensors(node)):
            noisy.update(id(tensor) for tensor in node.outputs)
    return frozenset(found.name for found in find_batch_norms(graph) if id(found.input) in noisy)


def _is_spatial(tensor: Tensor) -> bool:
    """Whether the nearest operator that decides it makes images, not vectors."""
    while tensor.inputs:
        node = tensor.inputs[0]
        if node.op in _SPATIAL or node.op in _FLAT:
            return node.op in _SPATIAL
        tensor = node.inputs[0]
    return tensor.shape is not None and len(tensor.shape) > 2


def _describe(signature: Signature, count: int) -> str:
    """A place in words."""
    behind, ahead, _ = signature
    target = ahead[0] if ahead else "end"
    where = f"in each of {count} blocks" if count > 1 else "at one place"
    if target in SUMS:
        return f"on the branch in front of the {target}, behind {' -> '.join(behind) or 'the input'}, {where}"
    source = f"follows {' -> '.join(behind)}" if behind else "reads the input"
    return f"in front of the {target} that {source}, {where}"


def _ordinal(signature: Signature) -> str:
    """What tells two places of the same description apart."""
    layers = signature[2]
    if layers < 0:
        return " (the next layers: " + " -> ".join(signature[1]) + ")"
    return f" ({layers} layer{'s' * (layers != 1)} before the end of the block: {' -> '.join(signature[1])})"
