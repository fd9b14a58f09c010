"""Noisy readings of many channels drawn toward what is known without them, each as far as it is unsure.

A reading y_c has the standard error e_c; the true values scatter around a centre m with the variance tau^2:

    w_c = 1 / e_c^2      Q = sum w_c (y_c - m)^2      tau^2 = max(0, (Q - C) / sum w_c)
    y_c -> m + (y_c - m) tau^2 / (tau^2 + e_c^2)

Where Q is what chance alone would make it, tau^2 counts as 0 and every channel goes to the centre.

Source: DerSimonian, Laird, "Meta-analysis in clinical trials", 1986 (tau^2 with a known centre); the last line is the
mean of the normal posterior.
"""

from __future__ import annotations

import numpy as np

from .inference import Float64Array

ERROR_FLOOR = 1e-4  # a reading that is surer stays as it is, and tells nothing of how the unsure ones scatter
SURE_IS_ZERO = 3.0  # times the floor: a sure reading below that is the rounding of two runs
CHANCE = 3.0  # how many of its standard deviations Q must lie above C to be more than chance


def shrink(values: Float64Array, errors: Float64Array, centre: float) -> Float64Array:
    """Draws readings toward a centre.

    Args:
        values: y, shape (C,).
        errors: e, shape (C,), not negative.
        centre: m.

    Returns:
        Shape (C,); the unsure ones equal to the centre where they show no more than chance.
    """
    shrunk: Float64Array = np.where(np.abs(values) > SURE_IS_ZERO * ERROR_FLOOR, values, 0.0)
    unsure = errors > ERROR_FLOOR
    if unsure.any():
        shrunk[unsure] = _draw(values[unsure], errors[unsure], centre)
    return shrunk


def _draw(values: Float64Array, errors: Float64Array, centre: float) -> Float64Array:
    """Draws readings that are unsure."""
    squares = errors**2
    w = 1 / squares
    q = float(w @ (values - centre) ** 2)
    if q <= values.size + CHANCE * np.sqrt(2 * values.size):
        return np.full_like(values, centre)
    tau2 = (q - values.size) / float(w.sum())
    drawn: Float64Array = centre + (values - centre) * (tau2 / (tau2 + squares))
    return drawn
