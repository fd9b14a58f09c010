"""What the BatchNorms of a network say together: which kinds of places carry noise, and how much of it.

A network is built of blocks, and whoever puts noise into one puts it into others, at the same kind of place. So the
kinds of places are chosen for the network as a whole: of all sets of up to three, the smallest that leaves no more of
the stored variances unexplained than a larger one would. A BatchNorm that this leaves far off may have a place of its
own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np

from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.noise.noise import NoiseKind

from .telling import MOST_AT_ONCE, Fit, Kind, Source, Telling, inflation_of, is_sure, jackknife_error

GAIN = 0.3  # of what is left: another kind of place must explain so much more
LEAST_GAIN = 0.015  # a relative residual, root mean square over the BatchNorms that have something to explain
EASY = 0.05  # the same of one BatchNorm on the way
MOSTLY = 0.8  # of what is to be explained
EQUAL = 0.03  # of what the places that differ explain: they explain as much
OWN_GAIN = 0.3  # of what one BatchNorm has to be explained: the same for a place of its own
NOTICEABLE = 0.03  # a relative residual, root mean square, that asks for a place of its own
MOST_KINDS = 12  # that are combined, those that explain most by themselves

Kinds = frozenset[Kind]


class Agreement:
    """What was told so far, and what explains it.

    Args:
        samples: of the calibration set.
    """

    def __init__(self, samples: int) -> None:
        self.tellings: list[Telling] = []
        self.inflation = inflation_of(samples)
        self._explained: defaultdict[Kind, float] = defaultdict(float)
        self._fits: dict[tuple[int, Kinds], Fit] = {}

    @classmethod
    def of(cls, tellings: Iterable[Telling], samples: int) -> Agreement:
        """What a whole walk told."""
        agreement = cls(samples)
        agreement.tellings += tellings
        return agreement

    def add(self, telling: Telling) -> Mapping[Source, float]:
        """Takes one more BatchNorm into account.

        Returns:
            The s2 of the sources that explain it: as few as explain what more would, and of equals those of a kind
            that explained others before.
        """
        self.tellings.append(telling)
        if not telling.sources:
            return {}
        fits = telling.fits(range(len(telling.sources)))
        best = min(fits, key=lambda fit: float(fit.left[0]))
        near = [fit for fit in fits if not self._is_better(best, fit, EASY * telling.without[0])]
        chosen = min(near, key=lambda fit: (len(fit.chosen), *self._doubt(telling, fit), float(fit.left[0])))
        for index in chosen.chosen:
            self._explained[telling.sources[index].of] += float(telling.without[0] - chosen.left[0])
        return {telling.sources[i]: float(s2) for i, s2 in zip(chosen.chosen, chosen.variances[0], strict=True)}

    def kinds(self) -> Kinds:
        """The smallest set of kinds of places that explains what was told."""
        telling = self._telling()
        chosen: Kinds = frozenset()
        left = self.left(chosen)
        useful = self._useful(telling)
        for size in range(1, min(MOST_AT_ONCE, len(useful)) + 1):
            sets = [kinds for kinds in map(frozenset, combinations(useful, size)) if _is_possible(kinds)]
            if not sets:
                break
            kinds = min(sets, key=lambda kinds: float(self.left(kinds)[0]))
            rest = self.left(kinds)
            least = max(GAIN * float(left[0]), len(telling) * LEAST_GAIN**2)
            if not (is_sure(left - rest, least, self.inflation) or self._is_sure_somewhere(kinds, chosen)):
                break
            chosen, left = kinds, rest
        return chosen

    def rivals(self, chosen: Kinds) -> list[Kinds]:
        """Other sets of as many kinds that explain as much, as far as chance can tell.

        A set that shares the kinds that explain most is none: what else there is, is a small matter then.
        """
        telling = self._telling()
        left = self.left(chosen)
        found = []
        for kinds in combinations(self._useful(telling), len(chosen)):
            more = self.left(frozenset(kinds)) - left
            shared = self.left(chosen & frozenset(kinds))
            if shared[0] <= (1 - MOSTLY) * self.left(frozenset())[0]:
                continue
            margin = max(self.inflation * jackknife_error(more), EQUAL * float(shared[0] - left[0]))
            if frozenset(kinds) != chosen and _is_possible(kinds) and more[0] < margin:
                found.append(frozenset(kinds))
        return found

    def own_places(self, chosen: Kinds) -> frozenset[tuple[str, NoiseKind]]:
        """The sources, by place and kind, that a single BatchNorm needs beside the kinds that were chosen."""
        found: set[tuple[str, NoiseKind]] = set()
        for telling in self._telling():
            common = [i for i, source in enumerate(telling.sources) if source.of in chosen]
            fit = telling.fit(common)
            if fit.left[0] < max(NOTICEABLE**2, OWN_GAIN * telling.without[0]):
                continue
            others = [i for i in range(len(telling.sources)) if i not in common]
            more = min((telling.fit([*fit.chosen, i]) for i in others), key=lambda one: float(one.left[0]), default=fit)
            if self._is_better(more, fit, OWN_GAIN * telling.without[0]):
                found |= {telling.sources[i].key for i in more.chosen if i not in fit.chosen}
        return frozenset(found)

    def left(self, kinds: Kinds) -> Float64Array:
        """What a set of kinds leaves, the sum over the BatchNorms that have something to explain, shape (1 + G,)."""
        telling = self._telling()
        return np.asarray(np.sum([self._fit(one, kinds).left for one in telling], axis=0) if telling else np.zeros(2))

    def _doubt(self, telling: Telling, fit: Fit) -> tuple[int, int]:
        """What speaks against a fit beforehand: kinds that explained little so far, in tenths; noise on an input."""
        own = sum(self._explained[telling.sources[index].of] for index in fit.chosen)
        inputs = sum(not telling.sources[index].place.tensor.inputs for index in fit.chosen)
        return -round(10 * own / max(sum(self._explained.values()), 1e-12)), inputs

    def _telling(self) -> list[Telling]:
        """Those that have something to explain."""
        return [telling for telling in self.tellings if telling.sources]

    def _is_sure_somewhere(self, kinds: Kinds, fewer: Kinds) -> bool:
        """Whether more kinds are needed at one BatchNorm, whatever the sum over all says."""
        return any(
            self._is_better(self._fit(one, kinds), self._fit(one, fewer), max(OWN_GAIN * one.without[0], NOTICEABLE**2))
            for one in self._telling()
        )

    def _is_better(self, one: Fit, other: Fit, margin: float) -> bool:
        """Whether a fit leaves less than another by more than a margin and more than chance."""
        return is_sure(other.left - one.left, margin, self.inflation)

    def _useful(self, telling: Iterable[Telling]) -> list[Kind]:
        """The kinds that explain something by themselves, the best first, as many as can be combined."""
        known = dict.fromkeys(source.of for one in telling for source in one.sources)
        nothing = self.left(frozenset())[0]
        alone = {kind: float(self.left(frozenset([kind]))[0]) for kind in known}
        return sorted((kind for kind in known if alone[kind] < nothing), key=lambda kind: alone[kind])[:MOST_KINDS]

    def _fit(self, telling: Telling, kinds: Kinds) -> Fit:
        """The best fit of one BatchNorm with some kinds; each is computed once."""
        own = kinds & {source.of for source in telling.sources}
        key = id(telling), own
        if key not in self._fits:
            self._fits[key] = telling.fit([i for i, one in enumerate(telling.sources) if one.of in own])
        return self._fits[key]


def likely(telling: Telling) -> set[int]:
    """The numbers of the sources that are in a fit which leaves as little as the best, as far as chance can tell."""
    fits = telling.fits(range(len(telling.sources)))
    best = min(fits, key=lambda fit: float(fit.left[0]))
    near = (fit for fit in fits if not is_sure(fit.left - best.left, EASY * float(telling.without[0])))
    return {index for fit in near for index in fit.chosen}


def _is_possible(kinds: Iterable[Kind]) -> bool:
    """Whether the places of each kind have one kind of noise."""
    signatures = [signature for signature, _ in kinds]
    return len(set(signatures)) == len(signatures)
