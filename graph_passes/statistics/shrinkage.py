"""Uncertain readings of many channels drawn toward a known centre, each as far as it is unsure.

A reading y_c has the standard error e_c; the true values scatter around a centre m with the variance tau^2:

    w_c = 1 / e_c^2      Q = sum w_c (y_c - m)^2      tau^2 = max(0, (Q - C) / sum w_c)
    y_c -> m + (y_c - m) tau^2 / (tau^2 + e_c^2)

Where Q is what chance alone would make it, tau^2 counts as 0 and every channel goes to the centre. The readings of one
sample are correlated: they share what the sample shows, and its contrast. With the correlations R of their errors

    E Q = C      Var Q = 2 tr R^2      Q / C ~ F with C^2 / tr R^2 degrees above, and those of the errors below

where R comes from the jackknife, which has n = G - 1 degrees, and its tr R^2 is freed of what n alone makes of it.

Sources: DerSimonian, Laird, "Meta-analysis in clinical trials", 1986 (tau^2 with a known centre; the last line is the
mean of the normal posterior); Box, "Some theorems on quadratic forms", 1954 (the distribution of Q by its first two
moments); Bai, Saranadasa, "Effect of high dimension", Statistica Sinica 1996 (tr R^2 from few samples).
"""

from __future__ import annotations

import numpy as np

from vsfix.graph_passes.ir.runtime import Float64Array

from .jackknife import f_tail, standard_error

ERROR_FLOOR = 1e-4  # a reading that is surer is unchanged, and not informative of how the unsure ones scatter
SURE_IS_ZERO = 3.0  # times the floor: a sure reading below that is the rounding of two runs


def shrink(values: Float64Array, errors: Float64Array, centre: float, *, scatters: bool) -> Float64Array:
    """Draws readings toward a centre.

    Args:
        values: y, shape (C,).
        errors: e, shape (C,), not negative.
        centre: m.
        scatters: whether the unsure ones scatter more than chance.

    Returns:
        Shape (C,); the unsure ones equal to the centre where they show no more than chance.
    """
    shrunk: Float64Array = np.where(np.abs(values) > SURE_IS_ZERO * ERROR_FLOOR, values, 0.0)
    unsure = errors > ERROR_FLOOR
    if unsure.any():
        shrunk[unsure] = _draw(values[unsure], errors[unsure], centre) if scatters else centre
    return shrunk


def scatter_p_value(values: Float64Array, without_each: Float64Array, degrees: float) -> float:
    """The probability that chance alone makes readings scatter around 0 as much as they do; 1 where none is unsure.

    Args:
        values: y - m, shape (C,).
        without_each: y - m without each group of samples, shape (G, C).
        degrees: of freedom of the standard errors.
    """
    errors = standard_error(without_each)
    unsure = errors > ERROR_FLOOR
    channels = int(unsure.sum())
    if not channels:
        return 1.0
    n = len(without_each) - 1
    z = without_each[:, unsure] - without_each[:, unsure].mean(axis=0)
    z = z / np.sqrt((z**2).sum(axis=0))  # (G, C): z' z is R
    trace = float(((z @ z.T) ** 2).sum())
    trace = n**2 / ((n - 1) * (n + 2)) * (trace - channels**2 / n)
    q = float(((values[unsure] / errors[unsure]) ** 2).mean())
    return f_tail(q, channels**2 / np.clip(trace, channels, channels**2), degrees)


def _draw(values: Float64Array, errors: Float64Array, centre: float) -> Float64Array:
    """Draws readings that are unsure."""
    squares = errors**2
    w = 1 / squares
    q = float(w @ (values - centre) ** 2)
    tau2 = max(0.0, q - values.size) / float(w.sum())
    drawn: Float64Array = centre + (values - centre) * (tau2 / (tau2 + squares))
    return drawn
