"""Where a training run may have had noise: the part of a graph that each BatchNorm is the first to see.

In topological order each BatchNorm has a region: the nodes that lead to its input and to no BatchNorm before it. The
regions share no node, so that whatever is done to each once costs one pass over the graph. Noise on a tensor of a
region shows first in the variances that its BatchNorm stores.

A place is a tensor of a region, or what the BatchNorm itself reads. Of tensors at which noise is the same thing one
stands for all: a factor on each element passes through a ReLU, and through a reshape. Places are of one kind when the
operators behind them, back to the nearest layer or join, and those ahead, up to the BatchNorm, are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import FOLD_TARGETS, BatchNorm, find_batch_norms
from vsfix.graph_passes.ir.graph import Tensor, captured_tensors, consumed_tensors, is_batch_norm, upstream_constant
from vsfix.graph_passes.noise.insertion import holds_whole_numbers
from vsfix.graph_passes.noise.propagation import LINEAR_MAPS, SHAPE_READERS

SUMS = frozenset("Add Sum".split())
ACTIVATIONS = frozenset(
    "Relu LeakyRelu PRelu Elu Selu Celu Gelu Sigmoid Tanh HardSigmoid HardSwish Mish Softplus Softsign Swish Clip "
    "ThresholdedRelu Softmax".split()
)
POOLS = frozenset("MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMean LpPool".split())
RESHAPES = frozenset("Reshape Flatten Squeeze Unsqueeze Transpose Identity Cast".split())
_HOMOGENEOUS = frozenset("Relu LeakyRelu PRelu".split())  # f(n x) = n f(x) for n >= 0
MOST_PLACES = 12  # of one region, the nearest to its BatchNorm

Signature = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Place:
    """A tensor that may have carried noise.

    Attributes:
        tensor: the tensor.
        behind: the operators from the nearest layer or join to it.
        ahead: the operators from it to the BatchNorm that sees it first; empty where that reads it.
        is_direct: whether the BatchNorm reads it.
        is_linear: whether the BatchNorm's input is a linear function of a factor on each element here.
        is_tied: whether every kind of noise here adds the same variance at the BatchNorm: nothing mixes its elements.
        is_branch: whether it is an operand of a sum.
        readers: the nodes of the region that read it; for what the BatchNorm reads, the BatchNorm.
        is_shared: whether others read it too, so that the noise may be for these readers alone.
        reader_count: how many nodes read its values, those of other regions too.
    """

    tensor: Tensor
    behind: tuple[str, ...]
    ahead: tuple[str, ...]
    is_direct: bool
    is_linear: bool
    is_tied: bool
    is_branch: bool
    readers: tuple[gs.Node, ...]
    is_shared: bool
    reader_count: int = 1

    @property
    def name(self) -> str:
        """The tensor's name."""
        return str(self.tensor.name)

    def sites(self, *, alone: bool) -> tuple[str, ...]:
        """As `InsertNoise` takes them: the tensor for all its readers, or the edges to those of this region alone."""
        if not (alone and self.is_shared):
            return (self.name,)
        return tuple(f"{self.name}->{reader.name}" for reader in self.readers)

    @property
    def signature(self) -> Signature:
        """What places of one kind share."""
        return self.behind, self.ahead

    @property
    def description(self) -> str:
        """In words, for one place of its kind."""
        return describe(self.signature)


def describe(signature: Signature) -> str:
    """Places of one kind, in words."""
    behind, ahead = signature
    target = ahead[0] if ahead else "BatchNorm"
    if target in SUMS:
        return f"on the branch upstream of the {target}, downstream of {' -> '.join(behind) or 'the input'}"
    source = f"follows {' -> '.join(behind)}" if behind else "reads the input"
    return f"upstream of the {target} that {source}"


@dataclass(frozen=True, eq=False)
class Region:
    """What one BatchNorm is the first to see.

    Attributes:
        batch_norm: the BatchNorm.
        nodes: in the order of the graph.
        reads: the tensors that the nodes take from other regions and from the graph's inputs, by name.
        places: the direct one first, then the others by their way to the BatchNorm, the shortest first.
    """

    batch_norm: BatchNorm
    nodes: tuple[gs.Node, ...]
    reads: Mapping[str, gs.Variable]
    places: tuple[Place, ...]


def find_regions(graph: gs.Graph) -> tuple[Region, ...]:
    """The regions of the readable BatchNorms, in the order of the graph.

    Args:
        graph: nodes in topological order; without noise markers and Constant nodes.
    """
    order = {id(node): number for number, node in enumerate(graph.nodes)}
    told: set[int] = set()
    regions = []
    inputs = {id(tensor) for tensor in graph.inputs}
    seen_inputs: set[int] = set()
    for batch_norm in find_batch_norms(graph):
        nodes = sorted(_untold(batch_norm.input, told), key=lambda node: order[id(node)])
        told.update(id(node) for node in nodes)
        own = {id(tensor) for node in nodes for tensor in node.outputs}
        read = {
            tensor.name: tensor
            for node in nodes
            for tensor in consumed_tensors(node)
            if isinstance(tensor, gs.Variable) and not tensor.is_empty() and id(tensor) not in own
        }
        fresh = [tensor for tensor in read.values() if id(tensor) in inputs and id(tensor) not in seen_inputs]
        seen_inputs.update(id(tensor) for tensor in fresh)
        regions.append(Region(batch_norm, tuple(nodes), read, _places(batch_norm, nodes, fresh)))
    return tuple(regions)


def _untold(target: Tensor, told: Collection[int]) -> list[gs.Node]:
    """The nodes that lead to a tensor and to none before it."""
    found: dict[int, gs.Node] = {}
    waiting = list(target.inputs)
    while waiting:
        node = waiting.pop()
        if id(node) in told or id(node) in found:
            continue
        found[id(node)] = node
        waiting += [producer for tensor in consumed_tensors(node) for producer in tensor.inputs]
    return list(found.values())


def _places(batch_norm: BatchNorm, nodes: Sequence[gs.Node], inputs: Sequence[gs.Variable]) -> tuple[Place, ...]:
    """The places of one region, no more than `MOST_PLACES`."""
    inside = {id(node): node for node in nodes}
    steps = _ways_ahead(batch_norm, nodes)
    captured = {id(tensor) for node in nodes for tensor in captured_tensors(node)}
    places = [_direct(batch_norm)]
    others: list[tuple[int, Place]] = []
    for tensor in [*inputs, *(tensor for node in nodes for tensor in node.outputs)]:
        if id(tensor) not in steps or id(tensor) in captured or tensor.is_empty():
            continue
        if _stands_for_another(tensor) or _same_as_input(tensor, batch_norm):
            continue
        if holds_whole_numbers(tensor):
            continue
        way = steps[id(tensor)]
        readers = list({id(node): node for node in tensor.outputs if id(node) in inside}.values())
        branch = any(node.op in SUMS and len(_data(node)) > 1 for node in readers)
        place = Place(
            tensor=tensor,
            behind=_behind(tensor),
            ahead=way.operators,
            is_direct=False,
            is_linear=way.is_linear,
            is_tied=way.is_plain,
            is_branch=branch,
            readers=tuple(readers),
            is_shared=_is_shared(tensor, readers),
            reader_count=_count_readers(tensor),
        )
        others.append((len(way.operators), place))
    others.sort(key=lambda pair: pair[0])
    return (*places, *(place for _, place in others))[:MOST_PLACES]


def _direct(batch_norm: BatchNorm) -> Place:
    """What the BatchNorm reads; where others read it too, the noise may be for it alone."""
    tensor, reader = batch_norm.input, batch_norm.node
    return Place(
        tensor=tensor,
        behind=_behind(tensor),
        ahead=(),
        is_direct=True,
        is_linear=True,
        is_tied=True,
        is_branch=False,
        readers=(reader,),
        is_shared=_is_shared(tensor, [reader]),
        reader_count=_count_readers(tensor),
    )


def _count_readers(tensor: Tensor) -> int:
    """How many nodes read the values of a tensor."""
    return len({id(node) for node in tensor.outputs if node.op not in SHAPE_READERS})


def _is_shared(tensor: Tensor, readers: Sequence[gs.Node]) -> bool:
    """Whether other nodes read the values of a tensor too, and these can be named apart."""
    own = {id(node) for node in readers}
    others = [node for node in tensor.outputs if id(node) not in own and node.op not in SHAPE_READERS]
    return bool(others) and all(node.name for node in (*readers, *others))


@dataclass(frozen=True)
class _Way:
    """What lies between a tensor and the BatchNorm.

    Attributes:
        operators: on the shortest way.
        is_linear: whether every way is linear.
        is_plain: whether no way mixes elements or scales them by something that is computed.
    """

    operators: tuple[str, ...] = ()
    is_linear: bool = True
    is_plain: bool = True

    def behind(self, node: gs.Node) -> _Way:
        """The way from in front of a node that leads here."""
        operator = _operator(node)
        plain = node.op in RESHAPES or node.op in SUMS or node.op == "Concat" or _scales(node)
        return _Way(
            (operator, *self.operators) if operator else self.operators,
            self.is_linear and _is_linear(node),
            self.is_plain and plain,
        )

    def or_else(self, other: _Way) -> _Way:
        """Both ways together."""
        shortest = min(self.operators, other.operators, key=len)
        return _Way(shortest, self.is_linear and other.is_linear, self.is_plain and other.is_plain)


def _ways_ahead(batch_norm: BatchNorm, nodes: Sequence[gs.Node]) -> dict[int, _Way]:
    """The way from each tensor to the BatchNorm, by the tensor's id."""
    ways: dict[int, _Way] = {id(batch_norm.input): _Way()}
    for node in reversed(nodes):
        known = [ways[id(tensor)] for tensor in node.outputs if id(tensor) in ways]
        if node.op in SHAPE_READERS or not known:
            continue
        mine = min(known, key=lambda way: len(way.operators)).behind(node)
        for tensor in _data(node):
            ways[id(tensor)] = ways[id(tensor)].or_else(mine) if id(tensor) in ways else mine
    return ways


def _is_linear(node: gs.Node) -> bool:
    """Whether a node is linear in each of its computed operands."""
    if node.op in RESHAPES or node.op in LINEAR_MAPS or is_batch_norm(node):
        return len(_data(node)) < 2 or node.op in SUMS or node.op in ("Concat", "Sub")
    return node.op in ("Mul", "Div") and len(_data(node)) < 2


def _stands_for_another(tensor: Tensor) -> bool:
    """Whether noise on a tensor is the same as noise behind its only reader, or in front of its producer."""
    readers = list({id(node): node for node in tensor.outputs}.values())
    if len(readers) == 1 and (readers[0].op in _HOMOGENEOUS or _scales(readers[0])):
        return True
    if len(tensor.inputs) == 1 and tensor.inputs[0].op in RESHAPES:
        source = tensor.inputs[0].inputs[0]
        return len({id(node) for node in source.outputs}) == 1
    return False


def _scales(node: gs.Node) -> bool:
    """Whether a node multiplies what is computed by a constant."""
    return node.op in ("Mul", "Div") and len(_data(node)) == 1


def _same_as_input(tensor: Tensor, batch_norm: BatchNorm) -> bool:
    """Whether nothing but reshapes, each the only reader, stand between a tensor and the BatchNorm."""
    while tensor is not batch_norm.input:
        readers = list({id(node): node for node in tensor.outputs}.values())
        if len(readers) != 1 or not (readers[0].op in RESHAPES or readers[0].op in _HOMOGENEOUS or _scales(readers[0])):
            return False
        tensor = readers[0].outputs[0]
    return True


def _data(node: gs.Node) -> list[Tensor]:
    """The inputs of a node that are computed or given, without its constants."""
    return [tensor for tensor in node.inputs if not tensor.is_empty() and upstream_constant(tensor) is None]


def _operator(node: gs.Node) -> str | None:
    """What a node counts as, or None where it changes nothing about the place."""
    if is_batch_norm(node):
        return "BatchNorm"
    counts = node.op in FOLD_TARGETS or node.op in ACTIVATIONS or node.op in POOLS or _is_join(node)
    return str(node.op) if counts else None


def _is_join(node: gs.Node) -> bool:
    """Whether a node joins a branch to the rest."""
    return (node.op in SUMS or node.op == "Concat") and len(_data(node)) > 1


def _behind(tensor: Tensor) -> tuple[str, ...]:
    """The operators from the nearest layer or join to the tensor, in the order in which they run."""
    return tuple(reversed(list(_walk_back(tensor))))


def _walk_back(tensor: Tensor) -> Iterator[str]:
    """The operators in front of a tensor, the nearest first."""
    while tensor.inputs:
        node = tensor.inputs[0]
        operator = _operator(node)
        if operator:
            yield operator
        operands = _data(node)
        if node.op in FOLD_TARGETS or _is_join(node) or not operands:
            return
        tensor = operands[0]
