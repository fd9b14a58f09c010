"""Mean and variance per channel, accumulated in float64 over any number of samples, and how sure they are.

A part of the data contributes its count n, its mean m and its centred sum of squares M = sum (x - m)^2; two parts are
merged without cancellation (Chan, Golub, LeVeque 1983):

    n = n_a + n_b      d = m_b - m_a      m = m_a + d n_b / n      M = M_a + M_b + d^2 n_a n_b / n

The variance is M / n, biased: it is the variance that BatchNorm divides by in training, and that it should store.

The samples are accumulated in up to G groups, so that the pooled moments without each group in turn are available: the
jackknife needs them to say how much the moments would change with other samples.

A module that is used several times has several inputs and one variance. Training updates it use by use, and so stores
the mean of their variances; what all of its values have together is more, by the variance between the uses' means. Both
are true, so that the stored variance is compared with the nearer of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.ir.runtime import Array, Float64Array

# A variance below this share of the squared mean is rounding noise of float32, not a variance.
RELATIVE_VARIANCE_FLOOR = 1e-10
MAX_GROUPS = 32  # a jackknife over so many groups is within a few percent of one over the samples


@dataclass(frozen=True)
class SampleMoments:
    """The moments of each sample of one batch by itself.

    Attributes:
        positions: the number of values that a channel of one sample has.
        mean: shape (N, C).
        centred_sum: the sum of squared distances from the sample's own mean, shape (N, C).
    """

    positions: int
    mean: Float64Array
    centred_sum: Float64Array

    def __post_init__(self) -> None:
        if self.mean.size == 0 or self.positions == 0:
            raise DataError("moments need at least one value per channel")
        finite = np.isfinite(self.centred_sum).all(axis=0) & np.isfinite(self.mean).all(axis=0)
        if not finite.all():
            raise DataError(f"channel {int(np.flatnonzero(~finite)[0])} holds a value that is not finite")

    @classmethod
    def of(cls, values: Array) -> SampleMoments:
        """The moments of the samples of one batch.

        Args:
            values: shape (N, C) or (N, C, *positions), any float type.

        Raises:
            DataError: fewer than two axes, no values, or a value that is not finite.
        """
        if values.ndim < 2:
            raise DataError(f"moments need (N, C, ...) values, got the shape {values.shape}")
        if values.size == 0:
            raise DataError(f"moments need at least one value per channel, got the shape {values.shape}")
        columns = values.reshape(values.shape[0], values.shape[1], -1)  # (N, C, positions)
        mean = columns.mean(axis=2, dtype=np.float64)  # (N, C)
        centred = columns - mean[:, :, None]  # float64
        return cls(columns.shape[2], mean, np.einsum("ncs,ncs->nc", centred, centred))

    def of_samples(self, samples: int) -> SampleMoments:
        """The moments of the values with as many rows as there are samples.

        A network may fold other axes into the batch axis, as (N, T, C) into (N T, C): the rows of one sample then
        follow each other. They are not independent, and so they are one sample here.

        Args:
            samples: N.

        Raises:
            DataError: the rows can't be shared out among the samples.
        """
        rows, channels = self.mean.shape
        if rows == samples:
            return self
        if rows % samples:
            raise DataError(f"has {rows} rows for {samples} samples: which row belongs to which sample is unknown")
        means = self.mean.reshape(samples, -1, channels)
        mean = means.mean(axis=1)  # (N, C)
        between = self.positions * ((means - mean[:, None]) ** 2).sum(axis=1)
        within = self.centred_sum.reshape(samples, -1, channels).sum(axis=1)
        return SampleMoments(self.positions * (rows // samples), mean, within + between)


@dataclass(frozen=True)
class Moments:
    """The first two moments of a tensor, channel by channel, pooled and group by group.

    Attributes:
        samples: the number of samples.
        counts: the number of values of a channel in each group, samples times positions, shape (G,).
        group_means: shape (G, C).
        group_centred_sums: squared distances from the group's own mean, summed, shape (G, C).
        uses: of a module that is used several times, the moments of each use; empty for one.
    """

    samples: int
    counts: npt.NDArray[np.int64]
    group_means: Float64Array
    group_centred_sums: Float64Array
    uses: tuple[Moments, ...] = ()

    @classmethod
    def of(cls, values: Array) -> Moments:
        """The moments of one batch, of the shapes that `SampleMoments.of` takes."""
        accumulator = MomentsAccumulator()
        accumulator.add(SampleMoments.of(values), first=0)
        return accumulator.result()

    @classmethod
    def pooled(cls, uses: Sequence[Moments]) -> Moments:
        """The moments of several inputs of one module, over the same samples, as if they were one.

        Args:
            uses: at least one.
        """
        counts = np.sum([use.counts for use in uses], axis=0)  # (G,)
        shares = [(use.counts / counts)[:, None] for use in uses]  # (G, 1) each
        means = sum((share * use.group_means for share, use in zip(shares, uses, strict=True)), np.zeros(()))
        centred = sum(
            (use.group_centred_sums + use.counts[:, None] * (use.group_means - means) ** 2 for use in uses),
            np.zeros(()),
        )
        return cls(uses[0].samples, counts, means, centred, tuple(uses))

    def as_stored(self, variance: Float64Array) -> Moments | AveragedMoments:
        """The moments as a stored variance was made: pooled over the uses, or averaged over them.

        Args:
            variance: the stored one, shape (C,).
        """
        if not self.uses:
            return self
        averaged = AveragedMoments(self.uses)
        known = ~self.degenerate & (variance > 0) & (averaged.variance > 0)
        if not known.any():
            return self
        logs = [np.log(variance[known] / found.variance[known]) for found in (self, averaged)]
        return self if float(np.abs(logs[0]).sum()) < float(np.abs(logs[1]).sum()) else averaged

    @property
    def count(self) -> int:
        """The number of values that each channel saw."""
        return int(self.counts.sum())

    @property
    def mean(self) -> Float64Array:
        """Shape (C,)."""
        mean: Float64Array = self.counts @ self.group_means / self.count
        return mean

    @property
    def centred_sum(self) -> Float64Array:
        """The sum of squared distances from the pooled mean, shape (C,)."""
        between = self.counts @ (self.group_means - self.mean) ** 2
        total: Float64Array = self.group_centred_sums.sum(axis=0) + between
        return total

    @property
    def variance(self) -> Float64Array:
        """The biased variance, shape (C,), never negative."""
        return self.centred_sum / self.count

    @property
    def degenerate(self) -> npt.NDArray[np.bool_]:
        """Shape (C,): true where the variance is zero, or no more than the rounding noise of float32."""
        variance = self.variance
        tiny = np.finfo(np.float32).tiny
        return np.asarray((variance <= RELATIVE_VARIANCE_FLOOR * self.mean**2) | (variance <= tiny))

    def without_each_group(self) -> tuple[Float64Array, Float64Array]:
        """The pooled mean and biased variance without each group in turn, both of shape (G, C).

        Raises:
            DataError: one group only; nothing would be left.
        """
        if len(self.counts) < 2:
            raise DataError("the uncertainty of the moments of one sample is unknown")
        rest = (self.count - self.counts)[:, None]  # (G, 1)
        offset = self.group_means - self.mean  # (G, C)
        weight = self.counts[:, None]
        shift = -weight * offset / rest  # mean without the group, seen from the pooled mean
        squares = self.centred_sum - self.group_centred_sums - weight * offset**2  # around the pooled mean
        return self.mean + shift, np.maximum(squares / rest - shift**2, 0)


@dataclass(frozen=True)
class AveragedMoments:
    """The moments of the uses of one module, averaged over them, as training averages the statistics.

    Attributes:
        uses: at least one.
    """

    uses: tuple[Moments, ...]

    @property
    def mean(self) -> Float64Array:
        """Shape (C,)."""
        return np.asarray(np.mean([use.mean for use in self.uses], axis=0))

    @property
    def variance(self) -> Float64Array:
        """Shape (C,)."""
        return np.asarray(np.mean([use.variance for use in self.uses], axis=0))

    def without_each_group(self) -> tuple[Float64Array, Float64Array]:
        """The mean and biased variance without each group in turn, both of shape (G, C)."""
        without = [use.without_each_group() for use in self.uses]
        means, variances = (np.asarray(np.mean(kind, axis=0)) for kind in zip(*without, strict=True))
        return means, variances


class MomentsAccumulator:
    """Collects batches into groups; sample i of the calibration set goes to group i mod G."""

    def __init__(self, groups: int = MAX_GROUPS) -> None:
        self._groups = groups
        self._samples = 0
        self._counts = np.zeros(groups, dtype=np.int64)
        self._means: Float64Array | None = None
        self._centred_sums: Float64Array | None = None

    def add(self, batch: SampleMoments, first: int) -> None:
        """Adds one batch.

        Args:
            batch: its moments.
            first: the number of its first sample within the calibration set.
        """
        samples, channels = batch.mean.shape
        if self._means is None or self._centred_sums is None:
            self._means = np.zeros((self._groups, channels))
            self._centred_sums = np.zeros((self._groups, channels))
        self._samples += samples
        for start in range(0, samples, self._groups):
            rows = slice(start, min(start + self._groups, samples))
            groups = (first + np.arange(rows.start, rows.stop)) % self._groups  # no group twice
            n_a, n_b = self._counts[groups][:, None], batch.positions
            n = n_a + n_b
            d = batch.mean[rows] - self._means[groups]
            self._means[groups] += d * (n_b / n)
            self._centred_sums[groups] += batch.centred_sum[rows] + d**2 * (n_a * n_b / n)
            self._counts[groups] += n_b

    def result(self) -> Moments:
        """The moments of all batches.

        Raises:
            DataError: nothing was.
        """
        if self._means is None or self._centred_sums is None:
            raise DataError("no sample was measured")
        used = self._counts > 0
        return Moments(self._samples, self._counts[used], self._means[used], self._centred_sums[used])
