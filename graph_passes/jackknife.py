"""How sure an estimate is, from the estimates without each group of samples in turn.

    se^2 = (G - 1) / G  sum_g (theta_(g) - theta_(.))^2          interval = theta -+ t_{G-1} se
    corrected theta = G theta - (G - 1) theta_(.)

Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11. Student's t comes from the expansion of
Fisher and Cornish (Abramowitz, Stegun 26.7.5), good to a percent from three degrees of freedom on.
"""

from __future__ import annotations

import numpy as np

from .inference import Float64Array

Z_95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval
MIN_GROUPS = 4


def standard_error(without_each: Float64Array) -> Float64Array:
    """The standard error of an estimate.

    Args:
        without_each: the estimate without each group, shape (G, ...).

    Returns:
        Shape (...).
    """
    groups = len(without_each)
    spread = ((without_each - without_each.mean(axis=0)) ** 2).sum(axis=0)
    error: Float64Array = np.sqrt((groups - 1) / groups * spread)
    return error


def unbiased(estimate: Float64Array, without_each: Float64Array) -> Float64Array:
    """The estimate without its bias of first order.

    Args:
        estimate: from all groups, shape (...).
        without_each: the estimate without each group, shape (G, ...).
    """
    groups = len(without_each)
    corrected: Float64Array = groups * estimate - (groups - 1) * without_each.mean(axis=0)
    return corrected


def student_t(degrees: int) -> float:
    """The quantile of Student's t for a two-sided 95 % interval; `degrees` of freedom, at least 3."""
    z, v = Z_95, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
