"""The scale and shift of one unit: damped Gauss-Newton (Levenberg, Marquardt), all channels at once.

Two of three samples are fitted, the third judges: a channel that is not nearer to its targets there has a = 1, b = 0.
`matching` defines the problem, and the order of the units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.statistics.moments import Moments

from .activations import Dual
from .units import FoundParameters, InputMoments

ITERATIONS = 12
_SMALLEST_GAIN = 1e-4  # of a step, relative to the matching loss
_SMALLEST_SCALE = 0.02  # of a; a smaller one would switch a channel off
_SMALLEST_VARIANCE = 1e-10  # of a channel, beside its squared mean


class Elementwise(Protocol):
    """g of one unit: `activations.Activation`, or anything with its value and its derivative."""

    def evaluate(self, z: Float64Array, sides: Mapping[str, Float64Array]) -> Dual:
        """h = g(z), with the addends of z by name, and dh/dz; all of shape (V, C)."""
        ...


@dataclass(frozen=True)
class UnitTarget:
    """The output that one unit should have.

    Attributes:
        chosen: the positions that are compared; None for all.
        mean: t, shape (N, M, C).
        noise_on_variance: of z with the noise on, shape (C,).
    """

    chosen: list[int] | None
    mean: Float64Array
    noise_on_variance: Float64Array

    @property
    def deviation(self) -> Float64Array:
        """The unit in which the shift of each channel moves, shape (C,); of a dead one a small part of the usual."""
        deviation = np.sqrt(self.noise_on_variance)
        typical = float(np.median(deviation)) or 1.0
        return np.maximum(deviation, 1e-3 * typical)


@dataclass(frozen=True)
class MatchedUnit:
    """The solution of one unit.

    Attributes:
        parameters: a and b.
        before: mean squared distance of g(z) from t over its variance, on the samples that judge, z as it was in the
            deployed network with the units upstream matched.
        after: that of g(a z + b).
    """

    parameters: FoundParameters
    before: float
    after: float


@dataclass(frozen=True)
class SeenUnit:
    """The input of a unit with the noise off: z, shape (N, M, C), and its addends, by name, of the same shape."""

    z: Float64Array
    sides: Mapping[str, Float64Array]


@dataclass(frozen=True)
class UnitUse:
    """One use of a unit: g, its input with the noise off, and t."""

    activation: Elementwise
    seen: SeenUnit
    target: UnitTarget


def solve_unit(uses: Sequence[UnitUse], held_out: npt.NDArray[np.bool_]) -> MatchedUnit:
    """a and b of one unit, or of all the uses of one module together.

    Args:
        uses: at least one.
        held_out: the samples that judge, shape (N,).
    """
    channels = uses[0].seen.z.shape[2]
    fitted = ~held_out
    a, b = _Fit([_columns(use, fitted) for use in uses]).solve()
    judge = _Fit([_columns(use, held_out if held_out.any() else fitted) for use in uses])
    plain = judge.squares(np.ones(channels), np.zeros(channels))
    better = judge.squares(a, b) < plain
    a, b = np.where(better, a, 1.0), np.where(better, b, 0.0)
    variance = np.maximum(judge.target_variance(), np.finfo(np.float64).tiny)
    alive = judge.target_variance() > _SMALLEST_VARIANCE
    count = judge.count
    before, after = (
        float((squares[alive] / count / variance[alive]).mean()) if alive.any() else 0.0
        for squares in (plain, judge.squares(a, b))
    )
    return MatchedUnit(FoundParameters(a, b), before, after)


def moved(off: Moments, on: Moments, gamma: Float64Array) -> InputMoments:
    """The move of the input of a BatchNorm from noise on to noise off.

    Args:
        off: with the noise off, shape (C,) each.
        on: with the noise on, from the same samples.
        gamma: of the BatchNorm, whose sign z has.
    """
    known = ~off.degenerate & ~on.degenerate
    variance = np.where(known, on.variance, 1.0)
    ratio = np.where(known, np.log(np.where(known, off.variance, 1.0) / variance), 0.0)
    return InputMoments(ratio, np.where(known, np.sign(gamma) * (off.mean - on.mean) / np.sqrt(variance), 0.0))


@dataclass(frozen=True)
class _Columns:
    """g, z, its addends, and t of some samples, each (V, C)."""

    g: Elementwise
    z: Float64Array
    sides: Mapping[str, Float64Array]
    t: Float64Array


def _columns(use: UnitUse, rows: npt.NDArray[np.bool_]) -> _Columns:
    """The samples of some rows."""
    channels = use.seen.z.shape[2]
    sides = {name: side[rows].reshape(-1, channels) for name, side in use.seen.sides.items()}
    z, t = (values[rows].reshape(-1, channels) for values in (use.seen.z, use.target.mean))
    return _Columns(use.activation, z, sides, t)


class _Fit:
    """Least squares over two numbers a channel, all channels at once."""

    def __init__(self, parts: Sequence[_Columns]) -> None:
        self._parts = parts
        self.count = sum(len(part.z) for part in parts)

    def target_variance(self) -> Float64Array:
        """The variance of t, shape (C,)."""
        return np.asarray(np.concatenate([part.t for part in self._parts]).var(axis=0))

    def squares(self, a: Float64Array, b: Float64Array) -> Float64Array:
        """The sum of squared distances, shape (C,)."""
        total = np.zeros(a.shape)
        for part in self._parts:
            value, _ = part.g.evaluate(a * part.z + b, part.sides)
            residual = value - part.t
            total += np.einsum("vc,vc->c", residual, residual)
        return total

    def solve(self) -> tuple[Float64Array, Float64Array]:
        """a and b, each (C,), by damped Gauss-Newton steps in the coordinates of a standardised z."""
        z = np.concatenate([part.z for part in self._parts]) if len(self._parts) > 1 else self._parts[0].z
        t = np.concatenate([part.t for part in self._parts]) if len(self._parts) > 1 else self._parts[0].t
        channels = z.shape[1]
        a, b = np.ones(channels), np.zeros(channels)
        centre, scale = z.mean(axis=0), z.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        standard = (z - centre) / scale  # (V, C)
        damping = np.full(channels, 1e-3)
        best = self.squares(a, b)
        for _ in range(ITERATIONS):
            evaluated = [part.g.evaluate(a * part.z + b, part.sides) for part in self._parts]
            value, slope = (np.concatenate(kind) if len(kind) > 1 else kind[0] for kind in zip(*evaluated, strict=True))
            residual = value - t
            # derivatives in a' = a scale and b' = b + a centre: slope * standard and slope
            scaled = slope * standard
            h11 = np.einsum("vc,vc->c", scaled, scaled)
            h12 = np.einsum("vc,vc->c", scaled, slope)
            h22 = np.einsum("vc,vc->c", slope, slope)
            g1 = np.einsum("vc,vc->c", scaled, residual)
            g2 = np.einsum("vc,vc->c", slope, residual)
            d11, d22 = h11 * (1 + damping), h22 * (1 + damping)
            determinant = d11 * d22 - h12**2
            solvable = determinant > 1e-12 * np.maximum(d11 * d22, np.finfo(np.float64).tiny)
            safe = np.where(solvable, determinant, 1.0)
            step1 = np.where(solvable, -(d22 * g1 - h12 * g2) / safe, 0.0)
            step2 = np.where(solvable, -(d11 * g2 - h12 * g1) / safe, 0.0)
            new_a = a + step1 / scale
            new_b = b + step2 - (new_a - a) * centre
            squares = self.squares(new_a, new_b)
            accepted = solvable & (new_a > _SMALLEST_SCALE) & (squares < best)
            gain = np.where(accepted, best - squares, 0.0)
            a, b = np.where(accepted, new_a, a), np.where(accepted, new_b, b)
            best = np.where(accepted, squares, best)
            damping = np.where(accepted, damping / 3, np.minimum(damping * 4, 1e6))
            if not (accepted & (gain > _SMALLEST_GAIN * best)).any() and damping.min(initial=np.inf) > 1:
                break
        return a, b
