"""Where the noise that shifts one BatchNorm comes from: the nodes from its source on, and what stands around them."""

from __future__ import annotations

from dataclasses import dataclass

from .noise_spread import PassedNode


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
