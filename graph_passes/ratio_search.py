"""The drop ratio at which a hypothesis fits the stored statistics best, from a handful of measurements.

A hypothesis with the ratio t leaves the residuals a(t) and b(t) in the two halves of the calibration set; what it fails
to explain is their product, the excess of `mismatch`. The draws of the noise are the same for every t, so both are
smooth. Between the three measured ratios around the best one they are interpolated by a parabola in each component,
and a . b, of degree four, is minimised on a fine grid.

The standard error of the minimum is that of a least-squares fit whose errors are independent between BatchNorms and
anything within one (Liang and Zeger 1986, the "sandwich"), with the derivatives a' and b':

    SE^2 = sum over BatchNorms of ((a' . b + b' . a) / 2)^2 / (a' . b')^2

It is too small: neighbouring BatchNorms see the same images, and the weights still moved while the statistics were
gathered. The interval is therefore three of them wide to either side, and at least 0.01.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .inference import Float64Array
from .mismatch import excess_of

MAX_RATIO = 0.95
STANDARD_ERRORS = 3.0
LEAST_WIDTH = 0.01
_GRID = 801
_CLOSE = 0.004


class RatioCurve:
    """The residuals of one kind of noise at one place, by its ratio.

    Args:
        measure: gives the weighted residuals of a ratio in both halves, shape (2, D).
        without: the residuals without noise, which is the ratio 0.
    """

    def __init__(self, measure: Callable[[float], Float64Array], without: Float64Array) -> None:
        self._measure = measure
        self._points: dict[float, Float64Array] = {0.0: without}

    @property
    def best_ratio(self) -> float:
        """The measured ratio, above 0, with the least excess."""
        return min((ratio for ratio in self._points if ratio), key=lambda ratio: excess_of(self._points[ratio]))

    @property
    def best(self) -> Float64Array:
        """The residuals at the best measured ratio, shape (2, D)."""
        return self._points[self.best_ratio]

    def climb(self, ladder: Sequence[float], *, beat: float = np.inf) -> None:
        """Measures ascending ratios until the excess rises, and then the interpolated minimum where that is promising.

        Args:
            ladder: the ratios, ascending.
            beat: an interpolated excess above this is not worth a measurement.
        """
        before = excess_of(self._points[0.0])
        for step, ratio in enumerate(ladder):
            now = self._add(ratio)
            if step and now > before:
                break
            before = now
        ratio, excess = self._minimum()
        if ratio > ladder[0] / 2 and excess < beat and not self._is_measured(ratio):
            self._add(ratio)

    def refine(self, start: float, *, rounds: int = 3) -> None:
        """Measures around `start`, then at the interpolated minimum until that is where something was measured."""
        for ratio in (start, 0.8 * start, min(1.2 * start, MAX_RATIO)):
            self._add(ratio)
        for _ in range(rounds):
            ratio = self.minimum()
            if self.best_ratio == max(self._points) and ratio >= self.best_ratio - _CLOSE:
                ratio = min(1.3 * self.best_ratio, MAX_RATIO)  # still falling where it was measured last
            if self._is_measured(ratio):
                return
            self._add(ratio)

    def minimum(self) -> float:
        """The ratio with the least interpolated excess, between the neighbours of the best that was measured."""
        return self._minimum()[0]

    def interval(self, bounds: npt.NDArray[np.int64]) -> tuple[float, float]:
        """Where the true ratio is, within [0, 1]; see the head of this module for its width.

        Args:
            bounds: where the residuals of each BatchNorm begin in the vector, and where the last end.
        """
        window = self._window()
        at = self.minimum()
        step = (window[-1] - window[0]) / 100
        below, here, above = np.moveaxis(
            _lagrange(window, np.array([at - step, at, at + step])) @ self._vectors(window), 1, 0
        )  # (2, D) each
        slope = (above - below) / (2 * step)
        scores = np.add.reduceat((slope[0] * here[1] + slope[1] * here[0]) / 2, bounds[:-1])
        curvature = float(slope[0] @ slope[1])
        error = float(np.sqrt(np.sum(scores**2))) / curvature if curvature > 0 else 1.0
        width = max(STANDARD_ERRORS * error, LEAST_WIDTH)
        return max(at - width, 0.0), min(at + width, 1.0)

    def _minimum(self) -> tuple[float, float]:
        """The interpolated minimum: its ratio and its excess."""
        window = self._window()
        grid = np.linspace(max(window[0], _CLOSE), window[-1], _GRID)
        basis = _lagrange(window, grid)  # (_GRID, 3)
        first, second = self._vectors(window)  # (3, D) each
        excess = np.einsum("gi,ij,gj->g", basis, first @ second.T, basis)
        lowest = int(np.argmin(excess))
        return float(grid[lowest]), float(excess[lowest])

    def _add(self, ratio: float) -> float:
        """Measures one ratio, once; returns its excess."""
        if ratio not in self._points:
            self._points[ratio] = self._measure(ratio)
        return excess_of(self._points[ratio])

    def _is_measured(self, ratio: float) -> bool:
        """Whether a ratio was measured, or one so close that the difference does not matter."""
        return min(abs(ratio - other) for other in self._points) < _CLOSE

    def _vectors(self, window: Float64Array) -> Float64Array:
        """The residuals at some measured ratios, shape (2, len(window), D)."""
        return np.stack([self._points[ratio] for ratio in window.tolist()], axis=1)

    def _window(self) -> Float64Array:
        """The best measured ratio with its nearest neighbours, three where there are so many."""
        ratios = sorted(self._points)
        index = min(range(len(ratios)), key=lambda i: excess_of(self._points[ratios[i]]))
        start = min(max(index - 1, 0), max(len(ratios) - 3, 0))
        return np.array(ratios[start : start + 3])


def _lagrange(nodes: Float64Array, at: Float64Array) -> Float64Array:
    """The values of the Lagrange polynomials of the nodes, shape (len(at), len(nodes))."""
    columns = []
    for i, node in enumerate(nodes):
        others = np.delete(nodes, i)
        columns.append(np.prod([(at - other) / (node - other) for other in others], axis=0) * np.ones_like(at))
    return np.stack(columns, axis=1)
