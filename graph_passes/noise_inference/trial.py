"""A region with a factor on each of its places, through which noise comes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import redirect_readers
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.noise.sampling import draw_affine

from .parts import Parts
from .places import Place, Region


@dataclass(frozen=True, eq=False)
class Mask:
    """Where noise comes in: a tensor of a region is multiplied by what is fed.

    Attributes:
        number: of the place within its region.
        place: the place.
        fed: the factor.
        noisy: the product, which the nodes of the region read.
        node: multiplies.
    """

    number: int
    place: Place
    fed: gs.Variable
    noisy: gs.Variable
    node: gs.Node

    @property
    def ones(self) -> Array:
        """The factor that changes nothing."""
        return np.ones(1, dtype=self.fed.dtype)


class Trial:
    """One region whose places can be made noisy. Its nodes read the products from now on.

    Args:
        parts: runs the nodes; the input of the BatchNorm is in its activations, and it knows the shapes of the places.
        region: the region.
        number: of the region.
        places: those that can be made noisy, without the one that the BatchNorm reads.
    """

    def __init__(self, parts: Parts, region: Region, number: int, places: Sequence[Place]) -> None:
        self.region = region
        self.number = number
        self._shapes = parts.shapes
        kind = parts.activations.get(0, region.batch_norm.input.name).dtype
        self.masks = [self._insert(count, place, kind) for count, place in enumerate(places, 1)]
        self.nodes = self._in_order()

    def shape(self, mask: Mask) -> tuple[int, ...]:
        """The shape of what a mask multiplies, in the first batch."""
        return next(iter(self._shapes.values()))[mask.place.name]

    def draw(self, mask: Mask, noise: Noise, samples: int, seed: tuple[int, ...]) -> Array:
        """One draw of the noise for a batch of so many samples."""
        rng = np.random.default_rng((*seed, self.number, mask.number))
        factor: Array = draw_affine(noise, self._shapes[samples][mask.place.name], rng)[0]
        return factor.astype(mask.fed.dtype, copy=False)

    def _insert(self, count: int, place: Place, kind: np.dtype[np.generic]) -> Mask:
        """Lets noise come in at a place, for the readers in this region."""
        name = f"{place.name}#{self.number}"
        fed = gs.Variable(f"{name}.factor", dtype=place.tensor.dtype or kind)
        noisy = gs.Variable(f"{name}.noisy", dtype=place.tensor.dtype)
        redirect_readers(place.tensor, noisy, place.readers)
        node = gs.Node("Mul", name, inputs=[place.tensor, fed], outputs=[noisy])
        return Mask(count, place, fed, noisy, node)

    def _in_order(self) -> list[gs.Node]:
        """The nodes of the region with those of its masks, in topological order."""
        inside = {id(node) for node in self.region.nodes}
        behind: dict[int, list[gs.Node]] = {}
        front = []
        for mask in self.masks:
            producers = [node for node in mask.place.tensor.inputs if id(node) in inside]
            if producers:
                behind.setdefault(id(producers[0]), []).append(mask.node)
            else:
                front.append(mask.node)
        return [*front, *(each for node in self.region.nodes for each in (node, *behind.get(id(node), ())))]
