"""Where the noise that shifts one BatchNorm comes from: the nodes from its source on, and what stands around them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm

from .analysis import NoisePath
from .propagation import PassedNode


@dataclass(frozen=True)
class NoiseRoute:
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


def noise_route(graph: gs.Graph, batch_norm: BatchNorm, path: NoisePath) -> NoiseRoute:
    """Looks a path up in its graph.

    Args:
        graph: in which both stand; not changed.
        batch_norm: what the noise reaches.
        path: the way; one of the BatchNorm's in `analyse_noise(graph)`.
    """
    # A source in the body of a control-flow node is not among these nodes, and nothing is drawn in front of it.
    markers = [node for node in graph.nodes if node.outputs and node.outputs[0].name == path.source.tensor]
    return NoiseRoute(
        source=path.source.name,
        noise=str(path.source.noise),
        distance=str(path.distance),
        batch_norm=batch_norm.name,
        before=tuple(PassedNode.of(node) for marker in markers for node in marker.inputs[0].inputs),
        through=path.nodes,
        behind=tuple(PassedNode.of(node) for node in batch_norm.output.outputs),
    )
