"""Tensors that hold random numbers of a known distribution, as affine functions of one elementary draw.

    F = a z + b         z ~ U(0, 1), N(0, 1) or Bernoulli(p), one draw for each element

A draw node gives a variable, and so does every element-wise operation that stays affine: sums and products with
constants, sums of two variables of the same draw, and, since z^2 = z there, products of two variables of one Bernoulli
draw. A comparison of a uniform variable with a constant is a new draw, Bernoulli with the probability of its being
true. A constant is a variable without a draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import Tensor


class DrawKind(Enum):
    """The distribution of an elementary draw z."""

    UNIFORM = "uniform"
    NORMAL = "normal"
    BERNOULLI = "bernoulli"


@dataclass(frozen=True, eq=False)
class Draw:
    """An elementary draw; two are the same only if they are the same object.

    Attributes:
        kind: its distribution.
        node: the operator that draws.
        tensor: a tensor with one element for each draw, whose shape is that of the draws.
        probability: of z = 1, for a Bernoulli draw.
    """

    kind: DrawKind
    node: gs.Node
    tensor: Tensor
    probability: float = 0.5

    @property
    def mean(self) -> float:
        """E[z]."""
        return {DrawKind.UNIFORM: 0.5, DrawKind.NORMAL: 0.0, DrawKind.BERNOULLI: self.probability}[self.kind]


@dataclass(frozen=True)
class RandomVariable:
    """F = slope z + intercept.

    Attributes:
        slope: a.
        intercept: b.
        draw: z; None for a constant.
    """

    slope: float
    intercept: float
    draw: Draw | None = None

    @classmethod
    def constant(cls, value: float) -> RandomVariable:
        """The variable that is `value` everywhere."""
        return cls(0.0, value)

    @property
    def value(self) -> float | None:
        """The constant that the variable is, or None."""
        return self.intercept if self.draw is None else None

    @property
    def mean(self) -> float:
        """E[F]."""
        return self.intercept if self.draw is None else self.slope * self.draw.mean + self.intercept

    @property
    def levels(self) -> tuple[float, float] | None:
        """F where z is 0 and where z is 1, for a Bernoulli draw; else None."""
        if self.draw is None or self.draw.kind is not DrawKind.BERNOULLI:
            return None
        return self.intercept, self.intercept + self.slope

    def scaled(self, factor: float) -> RandomVariable:
        """F times a constant."""
        return _variable(self.slope * factor, self.intercept * factor, self.draw)

    def plus(self, other: RandomVariable) -> RandomVariable | None:
        """The sum, or None where it is not affine in one draw."""
        if self.draw is not None and other.draw is not None and self.draw is not other.draw:
            return None
        return _variable(self.slope + other.slope, self.intercept + other.intercept, self.draw or other.draw)

    def times(self, other: RandomVariable) -> RandomVariable | None:
        """The product, or None where it is not affine in one draw."""
        if self.draw is None or other.draw is None:
            constant, variable = (self, other) if self.draw is None else (other, self)
            return variable.scaled(constant.intercept)
        if self.draw is not other.draw or self.draw.kind is not DrawKind.BERNOULLI:
            return None
        slope = self.slope * other.slope + self.slope * other.intercept + self.intercept * other.slope
        return _variable(slope, self.intercept * other.intercept, self.draw)

    def reshaped(self, tensor: Tensor) -> RandomVariable:
        """Equal numbers in the shape of `tensor`, as draws that nothing else shares."""
        if self.draw is None:
            return self
        draw = Draw(self.draw.kind, self.draw.node, tensor, self.draw.probability)
        return RandomVariable(self.slope, self.intercept, draw)

    def below(self, threshold: float) -> RandomVariable | None:
        """1 where F < threshold and 0 elsewhere, for a uniform variable."""
        if self.draw is None or self.draw.kind is not DrawKind.UNIFORM or self.slope == 0:
            return None
        low, high = sorted((self.intercept, self.intercept + self.slope))
        probability = (threshold - low) / (high - low)
        if not 0 < probability < 1:
            return None
        return RandomVariable(1.0, 0.0, Draw(DrawKind.BERNOULLI, self.draw.node, self.draw.tensor, probability))

    def floor(self) -> RandomVariable | None:
        """The largest integer not above F, for a uniform variable with one integer inside its range."""
        if self.draw is None or self.draw.kind is not DrawKind.UNIFORM:
            return None
        low, high = sorted((self.intercept, self.intercept + self.slope))
        step = math.floor(low) + 1
        below = self.below(step) if high <= step + 1 else None
        return None if below is None else RandomVariable(-1.0, float(step), below.draw)


def _variable(slope: float, intercept: float, draw: Draw | None) -> RandomVariable:
    """The variable; without its draw where nothing of it is left."""
    return RandomVariable(slope, intercept, draw) if slope else RandomVariable.constant(intercept)
