"""The path of noise to a BatchNorm as a row of boxes, long paths abbreviated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vsfix.graph_passes.noise.analysis import TracedPath
from vsfix.graph_passes.noise.propagation import PassedNode

_ENDS = 3  # nodes drawn at each end of a long path


@dataclass(frozen=True)
class Box:
    """One box.

    Attributes:
        kind: `node`, `noise`, `target` or `skipped`.
        title: the operator, the noise, or how many nodes are left out.
        name: of the node; empty for what is left out.
    """

    kind: str
    title: str
    name: str = ""


def path_boxes(path: TracedPath) -> tuple[Box, ...]:
    """The boxes from what the noise is put on to what reads the BatchNorm."""
    return (
        *_beside(path.before),
        Box("noise", path.noise, path.source),
        *_between(path.through),
        Box("target", "BatchNormalization", path.batch_norm),
        *_beside(path.behind),
    )


def _between(nodes: Sequence[PassedNode]) -> list[Box]:
    """The nodes on the path; the middle of a long one as one box."""
    if len(nodes) <= 2 * _ENDS + 1:
        return _boxes(nodes)
    left_out = len(nodes) - 2 * _ENDS
    return [*_boxes(nodes[:_ENDS]), Box("skipped", f"… {left_out} more"), *_boxes(nodes[-_ENDS:])]


def _beside(nodes: Sequence[PassedNode]) -> list[Box]:
    """The nodes at an end; several stand side by side in the graph, and share a box."""
    if len(nodes) <= 1:
        return _boxes(nodes)
    operators = ", ".join(dict.fromkeys(node.operator for node in nodes))
    return [Box("node", operators, f"{len(nodes)} nodes")]


def _boxes(nodes: Sequence[PassedNode]) -> list[Box]:
    """One box for each node."""
    return [Box("node", node.operator, node.name) for node in nodes]
