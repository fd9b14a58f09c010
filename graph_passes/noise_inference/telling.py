"""What one BatchNorm tells of noise in front of it: its stored variances against what noise at each place makes.

With V_j the stored variance of channel j, v0_j that of the same input without noise in its region, and Q_cj what unit
noise (variance 1) at place c adds,

    1 - v0_j / V_j  ~  sum over c of s2_c Q_cj / V_j        s2_c >= 0

Noise on what the BatchNorm reads falls on the other noise too: theirs counts 1 + s2 times then.

The channels tell the places apart, and the residual tells whether noise is the reason. Both sides are measured on the
same samples, and so have errors: least squares on their products would be biased toward 0 where a sample is one value
(errors in variables, Fuller 1987, "Measurement Error Models"). Every product is therefore one of *different* groups of
samples, averaged over all pairs of groups (a U-statistic): it has no such bias, and neither has the residual.

    U_cd = mean over j of w_j [ (sum_g z_cjg)(sum_g z_djg) - sum_g z_cjg z_djg ] / (G (G - 1))

z_0 is the left side, z_c the regressors, w_j falls with the sampling error of channel j. All that is fitted afterwards
is fitted on U, once as it is and once without each group in turn, for the jackknife.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.noise.noise import NoiseKind
from vsfix.graph_passes.statistics.jackknife import standard_error
from vsfix.graph_passes.statistics.moments import Moments

from .places import Place, Signature

MOST_AT_ONCE = 3  # places of one region that carry noise together
WORST = 3.0  # no channel is farther off than this: one dying unit must not decide
LEAST_STEADY = 0.3  # relative sampling error of a variance, above which a channel is no evidence
UNSURE = 1.5  # times the median sampling error, from which on a channel counts less
MODEL_ERROR = 0.05  # relative, of a stored variance: the weights moved while it was gathered
TRAINING_SAMPLES = 1200  # what stored statistics rest on: (2 - 0.1) / 0.1 batches of 64
SURE = 3.0  # standard errors
HIGHEST = 9.0  # of s2: a drop ratio of 0.9
_TINY = float(np.finfo(np.float32).tiny)
Kind = tuple[Signature, NoiseKind]


@dataclass(frozen=True, eq=False)
class Source:
    """One kind of noise at one place."""

    place: Place
    kind: NoiseKind

    @property
    def of(self) -> Kind:
        """What sources of one kind share."""
        return self.place.signature, self.kind

    @property
    def key(self) -> tuple[str, NoiseKind]:
        """What tells it from all others of its network."""
        return self.place.name, self.kind


@dataclass(frozen=True, eq=False)
class Fit:
    """The least that some sources of one BatchNorm leave.

    Attributes:
        chosen: the numbers of the sources that carry noise.
        variances: their s2, as fitted on all groups and without each, shape (1 + G, len(chosen)).
        left: the squared relative residual of the variances, mean over the channels, without chance; the same shape
            without its last axis. May be a little below 0.
    """

    chosen: tuple[int, ...]
    variances: Float64Array
    left: Float64Array


@dataclass(frozen=True, eq=False)
class Telling:
    """What one BatchNorm tells.

    Attributes:
        batch_norm: its name.
        sources: what may explain it; none where it has nothing to explain.
        products: U, on all groups and without each, shape (1 + G, 1 + sources, 1 + sources).
        chance: what the sampling error alone makes of a squared relative residual.
        means: the squared offset of the means in stored deviations, mean over the channels, without chance, on all
            groups and without each, shape (1 + G,).
        excess: the mean over the channels of log V - log v0.
        channels: how many tell anything.
        factor: by which all variances that are stored may be larger than those without noise; least squares.
        scaled: what is left of them then, shape (1 + G,), as `without` is what is left of them by themselves.
    """

    batch_norm: str
    sources: tuple[Source, ...]
    products: Float64Array
    chance: float
    means: Float64Array
    excess: float
    channels: int
    factor: float
    scaled: Float64Array

    @property
    def without(self) -> Float64Array:
        """What is left without noise, shape (1 + G,)."""
        return np.asarray(self.products[:, 0, 0])

    def fits(self, allowed: Collection[int]) -> list[Fit]:
        """The least squares of every set of up to three of the allowed sources in which each has some noise.

        A place has one kind of noise.
        """
        sets = (chosen for size in range(1, MOST_AT_ONCE + 1) for chosen in combinations(allowed, size))
        found = (self._solve(chosen) for chosen in sets if len({self.sources[i].place for i in chosen}) == len(chosen))
        return [Fit((), np.zeros((len(self.products), 0)), self.without), *(fit for fit in found if fit is not None)]

    def fit(self, allowed: Collection[int]) -> Fit:
        """The non-negative least squares of the sources that are allowed, of no more than three of them."""
        return min(self.fits(allowed), key=lambda fit: float(fit.left[0]))

    def left_by(self, variances: Mapping[int, float]) -> Float64Array:
        """What some s2, by the number of the source, leave, shape (1 + G,)."""
        rows = np.array(list(variances), dtype=np.intp) + 1
        chosen, true = tuple(variances), np.array([list(variances.values())])
        values = (true * self._magnified(chosen, true))[0]
        square = self.products[:, rows[:, None], rows]
        return np.asarray(self.without - 2 * self.products[:, rows, 0] @ values + values @ square @ values)

    def _magnified(self, chosen: Sequence[int], variances: Float64Array) -> Float64Array:
        """By how much noise on what the BatchNorm reads magnifies the other noise, shape (G, len(chosen)).

        Args:
            chosen: the numbers of the sources.
            variances: their s2, shape (G, len(chosen)).
        """
        direct = np.array([self.sources[index].place.is_direct for index in chosen], dtype=np.bool_)
        factor = 1 + variances[:, direct].sum(axis=1, keepdims=True)
        return np.where(direct, 1.0, factor)

    def _solve(self, chosen: tuple[int, ...]) -> Fit | None:
        """Least squares of some sources; None where one of them would be negative, or can't be told from another."""
        rows = np.array(chosen) + 1
        square = self.products[:, rows[:, None], rows]  # (1 + G, n, n)
        right = self.products[:, rows, 0]  # (1 + G, n)
        if np.linalg.eigvalsh(square[0])[0] <= 1e-3 * np.trace(square[0]) / len(rows):
            return None
        try:
            solved = np.linalg.solve(square, right[..., None])[..., 0]
        except np.linalg.LinAlgError:
            return None
        if np.any(solved[0] <= 0):
            return None
        variances = np.clip(solved, 0, HIGHEST)
        left = (
            self.without
            - 2 * np.einsum("gi,gi->g", variances, right)
            + np.einsum("gi,gij,gj->g", variances, square, variances)
        )
        return Fit(chosen, variances / self._magnified(chosen, variances), left)


@dataclass(frozen=True, eq=False)
class ChannelEvidence:
    """Which channels of a BatchNorm tell something, and how much each counts.

    Attributes:
        stored: V, shape (C,), 1 where it is no evidence.
        weights: w, shape (C,), of mean 1 over those that count, else 0.
        left: the left side z_0 in each group, shape (G, C).
        chance: as in `Telling`.
        means: as in `Telling`.
        excess: as in `Telling`.
    """

    stored: Float64Array
    weights: Float64Array
    left: Float64Array
    chance: float
    means: Float64Array
    excess: float

    @property
    def channels(self) -> int:
        """How many count."""
        return int(np.count_nonzero(self.weights))

    @classmethod
    def of(cls, stored: BatchNorm, found: Moments) -> ChannelEvidence:
        """Compares what is stored with what was measured without noise in the region."""
        usable = (stored.variance > _TINY) & np.isfinite(stored.variance) & np.isfinite(stored.mean)
        usable &= ~found.degenerate
        variance = np.where(usable, stored.variance, 1.0)
        # Of a module that is used several times what is stored may be the mean of the uses' variances.
        uses = [found] if found.as_stored(stored.variance) is found else list(found.uses)
        real = np.mean([group_variances(use) for use in uses], axis=0) / variance  # (G, C)
        groups = len(real)
        if groups < 2:
            usable &= False
        with np.errstate(all="ignore"):
            # Relative, so that it says little of v0.
            error = real.std(axis=0, ddof=1) / np.sqrt(groups) / real.mean(axis=0)
            usable &= error < LEAST_STEADY
        if not usable.any():
            nothing = np.zeros(len(variance))
            return cls(variance, nothing, np.zeros_like(real), 0.0, np.zeros(1 + groups), 0.0)
        # A channel that came out low by chance looks surer than it is: only those that are far less sure count less.
        doubt = np.maximum(error, UNSURE * np.median(error[usable]))
        weights = np.where(usable, 1 / (doubt**2 + MODEL_ERROR**2), 0.0)
        weights *= np.count_nonzero(usable) / weights.sum()
        mean = np.where(usable, (found.group_means - stored.mean) / np.sqrt(variance), 0.0)
        excess = np.where(usable, -np.log(np.where(usable, found.variance, 1.0) / variance), 0.0)
        return cls(
            stored=variance,
            weights=weights,
            left=np.clip(np.where(usable, 1 - real, 0.0), -WORST, None),
            chance=float(np.average(np.where(usable, error * real.mean(axis=0), 0.0) ** 2, weights=weights)),
            means=_products(np.clip(mean, -WORST, WORST)[None], weights)[:, 0, 0],
            excess=float(np.average(excess, weights=weights)),
        )

    def muted(self) -> ChannelEvidence:
        """The same without a channel that counts."""
        return replace(self, weights=np.zeros_like(self.weights))

    def tell(self, name: str, sources: Sequence[Source], added: Sequence[Float64Array]) -> Telling:
        """Puts the products together.

        Args:
            name: of the BatchNorm.
            sources: what may explain it.
            added: what unit noise of each adds to the variance, in each group, each (G, C).
        """
        counts = self.weights > 0
        sides = np.stack([self.left, *(np.where(counts, one / self.stored, 0.0) for one in added)])
        products = _products(sides, self.weights)
        factor, scaled = self._scaled()
        return Telling(
            name, tuple(sources), products, self.chance, self.means, self.excess, self.channels, factor, scaled
        )

    def _scaled(self) -> tuple[float, Float64Array]:
        """The least squares of V = k v0, relative to V: k, and what it leaves, shape (1 + G,)."""
        products = _products(np.stack([self.left, 1 - self.left]), self.weights)
        more = products[:, 0, 1] / np.maximum(products[:, 1, 1], _TINY)
        return 1 + float(more[0]), np.asarray(products[:, 0, 0] - more * products[:, 0, 1])


def group_variances(found: Moments) -> Float64Array:
    """The mean squared distance from the true mean in each group, shape (G, C).

    The pooled mean is nearer to the values than the true one; by how much, the scatter of the group means tells.
    """
    groups = len(found.counts)
    own = found.group_means.var(axis=0, ddof=1) / groups if groups > 1 else 0.0
    return found.group_centred_sums / found.counts[:, None] + (found.group_means - found.mean) ** 2 + own


def _products(sides: Float64Array, weights: Float64Array) -> Float64Array:
    """U on all groups and without each, from sides of shape (n, G, C); shape (1 + G, n, n)."""
    count, groups, _ = sides.shape
    share = weights / max(int(np.count_nonzero(weights)), 1)
    each = np.einsum("agj,bgj,j->gab", sides, sides, share)  # (G, n, n)
    total = sides.sum(axis=1)  # (n, C)
    sums = np.concatenate([total[None], total[None] - np.moveaxis(sides, 1, 0)])  # (1 + G, n, C)
    squares = np.einsum("gaj,gbj,j->gab", sums, sums, share)
    own = each.sum(axis=0) - np.concatenate([np.zeros((1, count, count)), each])
    number = np.array([groups] + [groups - 1] * groups, dtype=np.float64)
    return np.asarray((squares - own) / np.maximum(number * (number - 1), 1)[:, None, None])


def inflation_of(samples: int) -> float:
    """How much larger the whole error is than that of a calibration set: the stored statistics have errors too."""
    return float(np.sqrt(1 + samples / TRAINING_SAMPLES))


def jackknife_error(values: Float64Array) -> float:
    """The standard error of the first value, from the others, which are without one group each."""
    return float(standard_error(values[1:])) if len(values) > 2 else float("inf")


def is_sure(gain: Float64Array, margin: float, inflation: float = 1.0) -> bool:
    """Whether a mean square is more than a margin, and more than chance.

    Its root is so many times its standard error as twice the square is of its own.

    Args:
        gain: on all groups and without each, shape (1 + G,).
        margin: what is no matter.
        inflation: how much larger the whole error is than that of the calibration set.
    """
    return bool(gain[0] > max(margin, SURE / 2 * inflation * jackknife_error(gain)))
