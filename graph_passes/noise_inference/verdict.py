"""The verdict on lost noise: what was found, what it leaves, and whether it may be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.noise.noise import Noise, NoiseKind

from .agreement import Kinds
from .claims import MANY, Claim, claims_of
from .places import describe
from .plan import Plan
from .residuals import Residual, root
from .telling import Telling, inflation_of, is_sure

MOST_LEFT = 0.15  # a relative residual, root mean square over the network: with more another fault is the larger one
MOSTLY = 0.8  # of what is to be explained: noise that explains so much is there, whatever else is
NAMED = 3  # BatchNorms
CLEARLY = 2.0  # times what chance makes of all BatchNorms together: healthy networks stay below 1.2 of it


class Verdict(Enum):
    """What the statistics say."""

    FOUND = "found"
    NO_NOISE = "no noise"
    NOT_EXPLAINED = "not explained by noise"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True)
class NoiseInference:
    """What the stored statistics say about the noise of the training run.

    Attributes:
        verdict: in one word.
        claims: the noise, by kind of place and ratio; empty unless `found` or `ambiguous`.
        confidence: why it may be believed, or what speaks against it.
        residuals: by BatchNorm, in the order of the graph.
        samples: the size of the calibration set.
        is_partial: whether noise was found that leaves more than chance unexplained.
    """

    verdict: Verdict
    claims: tuple[Claim, ...]
    confidence: str
    residuals: Mapping[str, Residual]
    samples: int
    is_partial: bool = False

    @property
    def sites(self) -> dict[str, Noise]:
        """The noise by the name of its site, for `InsertNoise(sites, tensors_only=True)`; empty unless `found`."""
        if self.verdict is not Verdict.FOUND:
            return {}
        return {site: claim.noise for claim in self.claims for site in claim.sites}

    @property
    def description(self) -> str:
        """The answer in words."""
        said = "; ".join(claim.sentence for claim in self.claims)
        if self.verdict is Verdict.NO_NOISE:
            return "the stored statistics show no noise"
        if self.verdict is Verdict.NOT_EXPLAINED:
            nearest = f"; the nearest is {said}" if said else ""
            return f"no noise explains the stored statistics{nearest}"
        return said


def conclude(
    tellings: Sequence[Telling],
    plan: Plan,
    rivals: Sequence[Kinds],
    samples: int,
    equal: frozenset[NoiseKind] = frozenset(),
) -> NoiseInference:
    """Puts the last walk into words and numbers.

    Args:
        tellings: of the walk.
        plan: of the walk.
        rivals: other kinds of places that explain as much.
        samples: of the calibration set.
        equal: other kinds of noise that explain as much at the same places.
    """
    claims, left = claims_of(tellings, plan, inflation_of(samples))
    residuals = {
        telling.batch_norm: Residual.of(telling, left[telling.batch_norm], samples)
        for telling in tellings
        if telling.channels
    }
    rival = _factor(tellings, claims, left, inflation_of(samples))
    verdict, confidence = _judge(residuals, claims, rivals, rival, samples, equal)
    partial = verdict is Verdict.FOUND and any(one.is_off for one in residuals.values())
    return NoiseInference(verdict, claims, confidence, residuals, samples, is_partial=partial)


def _judge(
    residuals: Mapping[str, Residual],
    claims: Sequence[Claim],
    rivals: Sequence[Kinds],
    factor: tuple[Verdict, str] | None,
    samples: int,
    equal: frozenset[NoiseKind],
) -> tuple[Verdict, str]:
    """The verdict, and the reason."""
    before, after, chance = (
        root(float(np.mean([getattr(one, name) ** 2 for one in residuals.values()])))
        for name in ("before", "after", "chance")
    )
    off = [one for one in residuals.values() if one.has_other_variances]
    moved = {name: one for name, one in residuals.items() if one.has_other_means}
    size = f"the stored variances are off by {before:.3f} (root mean square over {len(residuals)} BatchNorms)"
    said = f"{size} without noise and by {after:.3f} with it; chance makes about {chance:.3f} on {samples} samples"
    if moved:
        worst = max(one.means for one in moved.values())
        return Verdict.NOT_EXPLAINED, (
            f"the means of {len(moved)} of {len(residuals)} BatchNorms are off too, by up to {worst:.2f} deviations, "
            "and unbiased noise moves no mean"
        )
    if not claims:
        if not off and before <= CLEARLY * chance:
            return Verdict.NO_NOISE, (
                f"{size}, where chance makes about {chance:.3f} on {samples} samples; weaker noise can't be excluded"
            )
        return Verdict.NOT_EXPLAINED, f"{size}, where chance makes about {chance:.3f}; no noise lowers it"
    if (off or after > CLEARLY * chance) and (after**2 > (1 - MOSTLY) * before**2 or after > MOST_LEFT):
        return Verdict.NOT_EXPLAINED, said
    if factor is not None:
        verdict, other = factor
        return verdict, f"{said}; {other}"
    here = {claim.signature for claim in claims}
    elsewhere = [kinds for kinds in rivals if {signature for signature, _ in kinds} != here]
    if elsewhere:
        others = " and ".join(describe(signature) for signature, _ in elsewhere[0])
        return Verdict.AMBIGUOUS, f"{said}; noise {others} explains as much"
    here_too = {kind for kinds in rivals for _, kind in kinds} | equal
    same = " and ".join(sorted(kind.value for kind in here_too - {claim.noise.kind for claim in claims}))
    return Verdict.FOUND, f"{said}; {same} there explains it as well" if same else said


def _factor(
    tellings: Sequence[Telling], claims: Sequence[Claim], left: Mapping[str, Float64Array], inflation: float
) -> tuple[Verdict, str] | None:
    """What is said where a BatchNorm whose variances are all larger by one factor would look the same.

    That is what other weights or other data leave, and what noise directly in front of a BatchNorm leaves where the
    means are small. The channels tell them apart; where they can't, noise that several places agree on is believed.
    """
    for claim in claims:
        if claim.before <= MOST_LEFT:
            continue
        told = [telling for telling in tellings if telling.batch_norm in claim.batch_norms]
        gain = np.sum([telling.scaled - left[telling.batch_norm] for telling in told], axis=0)
        larger = " and ".join(f"{telling.factor:.2f} at '{telling.batch_norm}'" for telling in told[:NAMED])
        one = f"one factor of all variances ({larger}), as other weights or other data leave, explains"
        if is_sure(-gain, 0.0, inflation):
            return Verdict.NOT_EXPLAINED, f"{one} more"
        agreeing = {name for other in claims if other.agrees_with(claim) for name in other.batch_norms}
        if len(agreeing) < MANY and not is_sure(gain, 0.0, inflation):
            return Verdict.AMBIGUOUS, f"{one} as much"
    return None
