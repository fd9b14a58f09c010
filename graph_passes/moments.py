"""Mean and variance per channel, accumulated in float64 over any number of batches.

Each batch contributes its count n, its mean m and its centred sum of squares M = sum (x - m)^2; two contributions are
merged without cancellation (Chan, Golub, LeVeque 1983):

    n = n_a + n_b      d = m_b - m_a      m = m_a + d n_b / n      M = M_a + M_b + d^2 n_a n_b / n

The variance is M / n, biased: it is what BatchNorm divides by in training, and what it should store.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .inference import Array, Float64Array

# A variance below this share of the squared mean is rounding noise of float32, not a variance.
RELATIVE_VARIANCE_FLOOR = 1e-10


@dataclass(frozen=True)
class Moments:
    """The first two moments of a tensor, channel by channel.

    Attributes:
        count: the number of values that each channel saw: samples times positions.
        mean: shape (C,).
        centred_sum: the sum of squared distances from the mean, shape (C,).
    """

    count: int
    mean: Float64Array
    centred_sum: Float64Array

    @classmethod
    def of(cls, values: Array) -> Moments:
        """The moments of one batch.

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
        count = columns.shape[0] * columns.shape[2]
        mean = columns.sum(axis=(0, 2), dtype=np.float64) / count  # (C,)
        centred = columns - mean[:, None]  # float64
        centred_sum = np.einsum("ncs,ncs->c", centred, centred)
        if not np.isfinite(centred_sum).all():
            channel = int(np.flatnonzero(~np.isfinite(centred_sum))[0])
            raise DataError(f"channel {channel} holds a value that is not finite")
        return cls(count, mean, centred_sum)

    def merge(self, other: Moments) -> Moments:
        """The moments of both together; neither operand changes."""
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + delta * (other.count / count),
            centred_sum=self.centred_sum + other.centred_sum + delta**2 * (self.count * other.count / count),
        )

    @property
    def degenerate(self) -> npt.NDArray[np.bool_]:
        """Shape (C,): true where the variance is zero, or no more than the rounding noise of float32."""
        variance = self.variance
        tiny = np.finfo(np.float32).tiny
        return np.asarray((variance <= RELATIVE_VARIANCE_FLOOR * self.mean**2) | (variance <= tiny))

    @property
    def variance(self) -> Float64Array:
        """The biased variance, shape (C,), never negative."""
        return self.centred_sum / self.count
