"""The part of a network that no noise reaches: it gives the same in every draw, and runs once for each batch.

    upstream       what no noise reaches; from the graph's inputs
    downstream     everything else; from the inputs, the noise, and what it reads of the part upstream

Dropout stands late in many networks. Where nothing costly is upstream of it, or no output
downstream, the network is left in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import onnx_graphsurgeon as gs

from vsfix.graph_passes.folding.linear_layer import LINEAR_OPERATORS
from vsfix.graph_passes.ir.graph import Tensor, consumed_tensors, nodes_of, subgraphs_of
from vsfix.graph_passes.ir.runtime import Array

# What they write differs from run to run, so that each draw has its own.
_RANDOM = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())


@dataclass(frozen=True, eq=False)
class SplitGraph:
    """A graph in two parts.

    Attributes:
        upstream: the nodes that no noise reaches and that something else needs; empty where the graph is one piece.
        downstream: all others.
        handed_on: what the part downstream reads of the one upstream.
        inputs: what it reads beside that and the noise: graph inputs.
        outputs: what it gives out.
        given: what is given out by the part upstream.
    """

    upstream: Sequence[gs.Node]
    downstream: Sequence[gs.Node]
    handed_on: Sequence[gs.Variable]
    inputs: Sequence[Tensor]
    outputs: Sequence[gs.Variable]
    given: Sequence[gs.Variable]


def reached_by(nodes: Sequence[gs.Node], noise: Collection[Tensor]) -> set[int]:
    """The ids of the tensors that differ from draw to draw: the noise, and what is computed from it.

    Args:
        nodes: each after what it reads.
        noise: the inputs that are drawn.
    """
    noisy = {id(tensor) for tensor in noise}
    for node in nodes:
        inner = (each.op for subgraph in subgraphs_of(node) for each in nodes_of(subgraph))
        if not _RANDOM.isdisjoint((node.op, *inner)) or any(id(tensor) in noisy for tensor in consumed_tensors(node)):
            noisy.update(id(tensor) for tensor in node.outputs)
    return noisy


def split_at_noise(
    graph: gs.Graph, nodes: Sequence[gs.Node], outputs: Sequence[gs.Variable], noise: Collection[Tensor]
) -> SplitGraph:
    """Parts a graph where its noise begins.

    Args:
        graph: that the nodes are of.
        nodes: its nodes and those of taps, each after what it reads.
        outputs: what is wanted.
        noise: the inputs that differ from draw to draw.
    """
    noisy = reached_by(nodes, noise)
    upstream: list[gs.Node] = []
    downstream: list[gs.Node] = []
    for node in nodes:
        (downstream if any(id(tensor) in noisy for tensor in node.outputs) else upstream).append(node)
    is_costly = any(node.op in LINEAR_OPERATORS for node in upstream)
    if not is_costly or not any(id(tensor) in noisy for tensor in outputs):
        return SplitGraph((), nodes, (), graph.inputs, outputs, ())
    produced = {id(tensor): tensor for node in upstream for tensor in node.outputs}
    read = {id(tensor): tensor for node in downstream for tensor in consumed_tensors(node)}
    return SplitGraph(
        upstream,
        downstream,
        [tensor for key, tensor in produced.items() if key in read],
        [tensor for tensor in graph.inputs if id(tensor) in read],
        [tensor for tensor in outputs if id(tensor) in noisy],
        [tensor for tensor in outputs if id(tensor) not in noisy],
    )


class ComputedOnce:
    """Values that several threads need, computed by the first and dropped with the last that asks for them.

    Args:
        compute: from the number of a batch.
        batches: how many there are.
        uses: how often each is asked for.
    """

    def __init__(self, compute: Callable[[int], Mapping[str, Array]], batches: int, uses: int) -> None:
        self._compute = compute
        self._locks = [Lock() for _ in range(batches)]
        self._left = [uses] * batches
        self._held: dict[int, Mapping[str, Array]] = {}

    def of(self, batch: int) -> Mapping[str, Array]:
        """The values of one batch."""
        with self._locks[batch]:
            if batch not in self._held:
                self._held[batch] = self._compute(batch)
            self._left[batch] -= 1
            return self._held[batch] if self._left[batch] else self._held.pop(batch)
