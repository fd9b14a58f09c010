"""What a walk tries, and what it takes for granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vsfix.graph_passes.noise.noise import NoiseKind

from .places import Place, Signature
from .telling import Kind, Source

UNIT = 0.5  # the drop ratio whose noise has the variance 1


@dataclass(frozen=True)
class Plan:
    """What a walk tries, and what it takes for granted.

    Attributes:
        only: the kinds of noise that are tried, by the signature of the place; None for all.
        own: more sources that are tried, by the name of the place and the kind.
        default: the kind of noise at places whose kind their own BatchNorm can't tell. DropPath stands on branches
            only; elsewhere it is Dropout then.
        kinds: the same, by signature.
        for_all: the signatures of shared places whose noise is for all readers; elsewhere it is for those in front of
            the BatchNorm alone.
        strengths: the drop ratio with which a source is tried, by the name of the place and the kind. It matters where
            the variance does not grow in proportion to that of the noise; elsewhere it is that of unit noise.
        among: the signatures of the places that are tried, where something asks for noise; None for all.
    """

    only: frozenset[Kind] | None = None
    own: frozenset[tuple[str, NoiseKind]] = frozenset()
    default: NoiseKind = NoiseKind.DROPOUT
    kinds: Mapping[Signature, NoiseKind] = field(default_factory=dict)
    for_all: frozenset[Signature] = frozenset()
    strengths: Mapping[tuple[str, NoiseKind], float] = field(default_factory=dict)
    among: frozenset[Signature] | None = None

    def sources(self, place: Place, shape: tuple[int, ...] | None = None) -> list[Source]:
        """The kinds of noise to try at a place.

        Args:
            place: the place.
            shape: of its tensor; where it is not known yet, every kind may be.
        """
        if place.is_tied:
            kinds = [self.kind(place)]
        else:
            kinds = [NoiseKind.DROPOUT]
            if shape is None or np.prod(shape[2:]) > 1:
                kinds.append(NoiseKind.FEATURE_DROPOUT)
            if place.is_branch:
                kinds.append(NoiseKind.DROP_PATH)
        return [source for kind in kinds if self._is_tried(source := Source(place, kind))]

    def strength(self, source: Source) -> float:
        """The drop ratio with which a source is tried."""
        return UNIT if source.place.is_linear else self.strengths.get(source.key, UNIT)

    def kind(self, place: Place) -> NoiseKind:
        """Of a place whose own BatchNorm can't tell it."""
        kind = self.kinds.get(place.signature, self.default)
        return NoiseKind.DROPOUT if kind is NoiseKind.DROP_PATH and not place.is_branch else kind

    def is_for_all(self, place: Place) -> bool:
        """Whether all readers of a tensor have its noise."""
        return not place.is_shared or place.signature in self.for_all

    def sites(self, place: Place) -> tuple[str, ...]:
        """As `InsertNoise` takes them."""
        return place.sites(alone=not self.is_for_all(place))

    def _is_tried(self, source: Source) -> bool:
        """Whether a source is tried."""
        if self.among is not None and source.place.signature not in self.among:
            return False
        if self.only is None or source.of in self.only or (source.place.name, source.kind) in self.own:
            return True
        place = source.place  # of a tied place the kind is another question
        return place.is_tied and (
            any(signature == place.signature for signature, _ in self.only)
            or any(name == place.name for name, _ in self.own)
        )
