"""How much noise each place has: fitted place by place, and one number where places of one kind agree."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.noise.noise import Noise

from .places import Signature
from .plan import Plan
from .telling import Fit, Kind, Source, Telling, is_sure, jackknife_error

SMALL = 0.1  # of s2: in one place alone this is chance
CLEAR = 0.09  # a relative residual: one BatchNorm alone must be off by more
TOO_SMALL = 0.02  # of s2: the weights moved by as much while the statistics were gathered
ONE_RATIO = 0.06  # drop ratios no farther apart are one
CLOSE = 1.5  # standard errors: so are these
STANDARD_ERRORS = 1.96
MANY = 3  # places that have a noise, from which on the others of their kind are held to have it too
SILENT = 0.03  # a relative residual that no BatchNorm is asked to explain
LEAST_WIDTH = 0.01  # of an interval to either side


@dataclass(frozen=True)
class Claim:
    """One noise at the places of one kind.

    Attributes:
        noise: kind and ratio.
        place: in words, with how many there are.
        signature: of the places.
        sites: as `InsertNoise` takes them.
        batch_norms: those that tell of it.
        interval: 95 % of the ratio.
        before: the relative residual of the variances of these BatchNorms without noise, root mean square.
        after: with all that was found.
    """

    noise: Noise
    place: str
    signature: Signature
    sites: tuple[str, ...]
    batch_norms: tuple[str, ...]
    interval: tuple[float, float]
    before: float
    after: float

    def agrees_with(self, other: Claim) -> bool:
        """Whether two claims are of places of one kind, or of one noise."""
        is_one = self.noise.kind is other.noise.kind and abs(self.noise.value - other.noise.value) <= ONE_RATIO
        return self.signature == other.signature or is_one

    @property
    def sentence(self) -> str:
        """The claim in words."""
        low, high = self.interval
        return (
            f"{self.noise} {self.place} (ratio {low:.2f} to {high:.2f}; residual {self.before:.2f} -> {self.after:.2f})"
        )


@dataclass(frozen=True, eq=False)
class _Amount:
    """The noise of one place.

    Attributes:
        source: where, and of which kind.
        telling: the BatchNorm that tells of it.
        index: of the source in the telling.
        variances: s2, on all groups and without each, shape (1 + G,).
        weight: how much the BatchNorm knows of it.
    """

    source: Source
    telling: Telling
    index: int
    variances: Float64Array
    weight: float

    @property
    def ratio(self) -> float:
        """The drop ratio."""
        return float(_ratios(self.variances)[0])


def claims_of(
    tellings: Sequence[Telling], plan: Plan, inflation: float
) -> tuple[tuple[Claim, ...], dict[str, Float64Array]]:
    """What the BatchNorms claim together, and what it leaves of each.

    Args:
        tellings: of a walk that tried only what is claimed.
        plan: of that walk.
        inflation: how much larger than the sampling error of the calibration set the whole error is.

    Returns:
        The claims, those with most places first, and the squared relative residual of each BatchNorm, by its name, on
        all groups and without each, shape (1 + G,).
    """
    total: dict[Kind, int] = {}
    amounts: dict[Kind, list[_Amount]] = {}
    for telling in tellings:
        fit = telling.fit(range(len(telling.sources)))
        for source in telling.sources:
            total[source.of] = total.get(source.of, 0) + 1
        for amount in _amounts(telling, fit):
            amounts.setdefault(amount.source.of, []).append(amount)
    accepted = []
    for kind, known in amounts.items():
        groups = [group for group in _agreeing(known, inflation) if _is_no_chance(group, inflation)]
        _fill_in(
            groups, [telling for telling in tellings if any(source.of == kind for source in telling.sources)], kind
        )
        accepted += groups
    found: dict[int, dict[int, float]] = {}
    for group in accepted:
        for amount in group:
            found.setdefault(id(amount.telling), {})[amount.index] = float(_pooled(group)[0])
    left = {telling.batch_norm: telling.left_by(found.get(id(telling), {})) for telling in tellings}
    accepted.sort(key=lambda group: -len(group))
    return tuple(_claim(group, left, total[group[0].source.of], plan, inflation) for group in accepted), left


def _amounts(telling: Telling, fit: Fit) -> list[_Amount]:
    """The noise of each place of one BatchNorm, as far as it is worth a word."""
    return [
        _Amount(
            telling.sources[index],
            telling,
            index,
            fit.variances[:, column],
            float(telling.products[0, index + 1, index + 1]),
        )
        for column, index in enumerate(fit.chosen)
        if fit.variances[0, column] >= TOO_SMALL
    ]


def _agreeing(amounts: Collection[_Amount], inflation: float) -> list[list[_Amount]]:
    """Groups of places whose ratios are no farther apart than their errors, or than makes a difference."""
    groups: list[list[_Amount]] = []
    for amount in sorted(amounts, key=lambda amount: amount.ratio):
        if groups:
            pooled = _ratios(_pooled(groups[-1]))
            error = inflation * jackknife_error(_ratios(amount.variances) - pooled)
            if amount.ratio - pooled[0] <= max(ONE_RATIO, CLOSE * error):
                groups[-1].append(amount)
                continue
        groups.append([amount])
    return groups


def _fill_in(groups: Sequence[list[_Amount]], tellings: Sequence[Telling], kind: Kind) -> None:
    """Adds the places of a kind that say nothing against the noise that most of them have.

    Where noise moves a variance by less than chance does, its BatchNorm can't tell; whoever put it into the others put
    it there too.
    """
    claimed = {(id(amount.telling), amount.index) for group in groups for amount in group}
    silent = [
        (telling, index)
        for telling in tellings
        for index, source in enumerate(telling.sources)
        if source.of == kind and (id(telling), index) not in claimed
    ]
    if len(claimed) < max(MANY, len(silent)):
        return
    for telling, index in silent:
        losses = [_loss(telling, index, float(_pooled(group)[0])) for group in groups]
        nearest = min(range(len(groups)), key=lambda number: float(losses[number][0]))
        if not is_sure(losses[nearest], SILENT**2):
            weight = float(telling.products[0, index + 1, index + 1])
            pooled = _pooled(groups[nearest])
            groups[nearest].append(_Amount(telling.sources[index], telling, index, pooled, weight))


def _loss(telling: Telling, index: int, s2: float) -> Float64Array:
    """By how much more is left of a BatchNorm with noise at one place, the others as they fit, shape (1 + G,)."""
    fit = telling.fit(range(len(telling.sources)))
    found = {i: float(value) for i, value in zip(fit.chosen, fit.variances[0], strict=True)}
    return telling.left_by({**found, index: s2}) - fit.left


def _pooled(group: Sequence[_Amount]) -> Float64Array:
    """The s2 of places that agree, on all groups of samples and without each, shape (1 + G,)."""
    weights = np.array([amount.weight for amount in group])
    return np.asarray(weights @ np.stack([amount.variances for amount in group]) / weights.sum())


def _ratios(variances: Float64Array) -> Float64Array:
    """The drop ratios of some s2."""
    return variances / (1 + variances)


def _is_no_chance(group: Sequence[_Amount], inflation: float) -> bool:
    """Whether several places agree on more than chance, or one has much."""
    pooled = _pooled(group)
    if len(group) == 1 and group[0].telling.without[0] < CLEAR**2:
        return False
    if pooled[0] >= SMALL:
        return True
    return len(group) > 1 and bool(pooled[0] > 2 * STANDARD_ERRORS * inflation * jackknife_error(pooled))


def _claim(
    group: Sequence[_Amount],
    left: Mapping[str, Float64Array],
    total: int,
    plan: Plan,
    inflation: float,
) -> Claim:
    """Puts one group into words and numbers."""
    pooled = _pooled(group)
    ratios = _ratios(pooled)
    width = max(STANDARD_ERRORS * inflation * jackknife_error(ratios), LEAST_WIDTH)
    ratio = float(ratios[0])
    tellings = list({id(amount.telling): amount.telling for amount in group}.values())
    before = float(np.mean([telling.without[0] for telling in tellings]))
    after = float(np.mean([left[telling.batch_norm][0] for telling in tellings]))
    place = group[0].source.place
    return Claim(
        noise=Noise(group[0].source.kind, round(ratio, 3)),
        place=f"{place.description}, {_how_often(len(group), total)}",
        signature=place.signature,
        sites=tuple(site for amount in group for site in plan.sites(amount.source.place)),
        batch_norms=tuple(telling.batch_norm for telling in tellings),
        interval=(max(ratio - width, 0.0), min(ratio + width, 1.0)),
        before=max(before, 0.0) ** 0.5,
        after=max(after, 0.0) ** 0.5,
    )


def _how_often(count: int, total: int) -> str:
    """At how many of the places of a kind."""
    if count == 1:
        return "at one place" if total == 1 else f"at one place of {total}"
    return f"in each of {count} blocks" if count >= total else f"in {count} of {total} blocks"
