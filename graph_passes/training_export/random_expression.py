"""Affine expressions A x + B that a graph computes with the random numbers that it draws.

    Y = A x + B         x: a tensor of the graph; A and B: affine random variables of `random_variable`

Every other tensor is its own x, with A = 1 and B = 0. A tensor without an x is a random variable. Nothing is guessed:
an operator or a combination that is not affine makes its output a tensor of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import Tensor, is_standard
from vsfix.graph_passes.ir.shapes import SymbolicShapes
from vsfix.graph_passes.noise.marker import is_switched_off

from .random_variable import Draw, DrawKind, RandomVariable

RANDOM_OPERATORS = frozenset(
    "RandomUniform RandomUniformLike RandomNormal RandomNormalLike Bernoulli Multinomial".split()
)

ZERO, ONE = RandomVariable.constant(0.0), RandomVariable.constant(1.0)
_COMPARISONS = {"Less": 1, "LessOrEqual": 1, "Greater": -1, "GreaterOrEqual": -1}
_RESHAPES = frozenset("Reshape Unsqueeze Squeeze Flatten Transpose".split())
_FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
)


@dataclass(frozen=True, eq=False)
class AffineExpression:
    """Y = factor * base + offset; without a base, Y = offset."""

    base: Tensor | None
    factor: RandomVariable
    offset: RandomVariable

    @property
    def draws(self) -> tuple[Draw, ...]:
        """The draws of the factor and the offset."""
        return tuple(variable.draw for variable in (self.factor, self.offset) if variable.draw is not None)

    @property
    def variable(self) -> RandomVariable | None:
        """Y where it is a random variable."""
        return self.offset if self.base is None else None

    def plus(self, other: AffineExpression) -> AffineExpression | None:
        """The sum, or None where it is not affine."""
        if self.base is not None and other.base is not None and self.base is not other.base:
            return None
        factor, offset = self.factor.plus(other.factor), self.offset.plus(other.offset)
        base = other.base if self.base is None else self.base
        return None if factor is None or offset is None else AffineExpression(base, factor, offset)

    def times(self, variable: RandomVariable) -> AffineExpression | None:
        """The product with a random variable, or None where it is not affine."""
        factor, offset = self.factor.times(variable), self.offset.times(variable)
        return None if factor is None or offset is None else AffineExpression(self.base, factor, offset)


class RandomExpressions:
    """The forms of the tensors of a graph; feed it the nodes in their order.

    Args:
        shapes: of the tensors of the graph.
    """

    def __init__(self, shapes: SymbolicShapes) -> None:
        self._shapes = shapes
        self._found: dict[int, AffineExpression] = {}

    def of(self, tensor: Tensor) -> AffineExpression:
        """The expression of a tensor; of a node that was not fed, the tensor itself."""
        found = self._found.get(id(tensor))
        if found is not None:
            return found
        value = _single_value(tensor.values) if isinstance(tensor, gs.Constant) else None
        if value is None:
            return AffineExpression(tensor, ONE, ZERO)
        return AffineExpression(None, ZERO, RandomVariable.constant(value))

    def feed(self, node: gs.Node) -> AffineExpression | None:
        """Finds the expression of a node's output; None where it is only itself."""
        rule = _RULES.get(node.op) if is_standard(node) else None
        expression = None if rule is None else rule(node, [self.of(tensor) for tensor in node.inputs])
        if node.op in _RESHAPES and expression is not None and not self._reshapes_draws(node, expression):
            expression = None
        # A tensor without randomness is more useful as a tensor than as a function of one further upstream.
        if expression is None or (expression.base is not None and not expression.draws):
            return None
        self._found[id(node.outputs[0])] = expression
        return expression

    def _reshapes_draws(self, node: gs.Node, expression: AffineExpression) -> bool:
        """Whether what a node reshapes still has the shape of the draws: broadcasting repeats them."""
        source = self.of(node.inputs[0]).draws
        return not source or self._shapes.are_equal(source[0].tensor, node.inputs[0])

    def forget(self, tensor: Tensor) -> None:
        """From now on the tensor is only itself."""
        self._found.pop(id(tensor), None)


def _of_variable(variable: RandomVariable | None) -> AffineExpression | None:
    """The expression of a random variable."""
    return None if variable is None else AffineExpression(None, ZERO, variable)


def _single_value(values: object) -> float | None:
    """The number that all elements of an array are, or None."""
    array = np.asarray(values)
    if array.size == 0 or array.dtype.kind not in "fiub" or (array != array.flat[0]).any():
        return None
    return float(array.flat[0])


def _constant(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Constant, ConstantOfShape."""
    default = None if node.op == "Constant" else np.zeros(1, np.float32)
    numbers = [value for key, value in node.attrs.items() if key in ("value_float", "value_floats", "value_int")]
    tensor = numbers[0] if numbers else node.attrs.get("value", default)
    values = tensor.values if isinstance(tensor, gs.Constant) else tensor
    value = None if values is None else _single_value(values)
    return None if value is None else _of_variable(RandomVariable.constant(value))


def _draw(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """RandomUniform, RandomNormal and their Like operators."""
    if node.op.startswith("RandomUniform"):
        low, high = float(node.attrs.get("low", 0.0)), float(node.attrs.get("high", 1.0))
        return _of_variable(RandomVariable(high - low, low, Draw(DrawKind.UNIFORM, node, node.outputs[0])))
    scale, mean = float(node.attrs.get("scale", 1.0)), float(node.attrs.get("mean", 0.0))
    return _of_variable(RandomVariable(scale, mean, Draw(DrawKind.NORMAL, node, node.outputs[0])))


def _bernoulli(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Bernoulli of one probability."""
    variable = inputs[0].variable
    if variable is None or variable.value is None or not 0 < variable.value < 1:
        return None
    return _of_variable(RandomVariable(1.0, 0.0, Draw(DrawKind.BERNOULLI, node, node.outputs[0], variable.value)))


def _dropout(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Dropout of a constant in training mode, as in x * dropout(ones)."""
    value = None if inputs[0].variable is None else inputs[0].variable.value
    ratio = inputs[1].variable if len(inputs) > 1 and not node.inputs[1].is_empty() else RandomVariable.constant(0.5)
    if value is None or ratio is None or ratio.value is None or not 0 < ratio.value < 1 or is_switched_off(node):
        return None
    keep = 1 - ratio.value
    return _of_variable(RandomVariable(value / keep, 0.0, Draw(DrawKind.BERNOULLI, node, node.outputs[0], keep)))


def _compare(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """A uniform variable against a constant, in either order."""
    left, right = (expression.variable for expression in inputs)
    sign = _COMPARISONS[node.op]
    if left is not None and left.value is not None:
        left, right, sign = right, left, -sign
    if left is None or right is None or right.value is None:
        return None
    below = left.below(right.value)
    return _of_variable(below if sign > 0 or below is None else _complement(below))


def _complement(variable: RandomVariable) -> RandomVariable:
    """1 - F."""
    return RandomVariable(-variable.slope, 1 - variable.intercept, variable.draw)


def _is_indicator(variable: RandomVariable | None) -> bool:
    """Whether a variable is 0 or 1 everywhere."""
    return variable is not None and variable.levels is not None and set(variable.levels) == {0.0, 1.0}


def _not(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Not."""
    variable = inputs[0].variable
    return _of_variable(_complement(variable)) if variable is not None and _is_indicator(variable) else None


def _add(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Add, Sum of two."""
    return inputs[0].plus(inputs[1]) if len(inputs) == 2 else None


def _subtract(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Sub."""
    negative = inputs[1].times(RandomVariable.constant(-1.0))
    return None if negative is None else inputs[0].plus(negative)


def _negate(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Neg."""
    return inputs[0].times(RandomVariable.constant(-1.0))


def _multiply(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Mul, where one side is a variable."""
    expression, other = inputs if inputs[1].variable is not None else inputs[::-1]
    return None if other.variable is None else expression.times(other.variable)


def _divide(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Div by a constant; of whole numbers only where nothing is cut off."""
    divisor = None if inputs[1].variable is None else inputs[1].variable.value
    if not divisor:
        return None
    dividend = None if inputs[0].variable is None else inputs[0].variable.value
    if dividend is not None and dividend.is_integer() and divisor.is_integer() and dividend % divisor:
        return None
    return inputs[0].times(RandomVariable.constant(1 / divisor))


def _reciprocal(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Reciprocal, Sqrt of a constant."""
    value = None if inputs[0].variable is None else inputs[0].variable.value
    if not value or (node.op == "Sqrt" and value < 0):
        return None
    return _of_variable(RandomVariable.constant(1 / value if node.op == "Reciprocal" else math.sqrt(value)))


def _floor(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Floor of a uniform variable, as in floor(keep + u)."""
    return None if inputs[0].variable is None else _of_variable(inputs[0].variable.floor())


def _where(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """m a + (1 - m) b for a random condition m."""
    condition = inputs[0].variable
    if condition is None or not _is_indicator(condition):
        return None
    chosen, other = inputs[1].times(condition), inputs[2].times(_complement(condition))
    return None if chosen is None or other is None else chosen.plus(other)


def _same(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Identity; Expand of a variable, whose draws are unchanged."""
    return inputs[0] if node.op == "Identity" or inputs[0].base is None else None


def _cast(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Cast of a variable to a type that holds it exactly or rounds it."""
    variable = inputs[0].variable
    if variable is None:
        return None
    exact = _is_indicator(variable) or (
        variable.value is not None and variable.value.is_integer() and variable.value in (0, 1)
    )
    return inputs[0] if exact or node.attrs.get("to") in _FLOATS or node.op == "CastLike" else None


def _reshape(node: gs.Node, inputs: list[AffineExpression]) -> AffineExpression | None:
    """Draws in another shape and order."""
    variable = inputs[0].variable
    return None if variable is None else _of_variable(variable.reshaped(node.outputs[0]))


_RULES: dict[str, Callable[[gs.Node, list[AffineExpression]], AffineExpression | None]] = {
    **dict.fromkeys(("Constant", "ConstantOfShape"), _constant),
    **dict.fromkeys(("RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike"), _draw),
    **dict.fromkeys(_COMPARISONS, _compare),
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(("Identity", "Expand"), _same),
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    **dict.fromkeys(("Reciprocal", "Sqrt"), _reciprocal),
    **dict.fromkeys(("Add", "Sum"), _add),
    "Bernoulli": _bernoulli,
    "Dropout": _dropout,
    "Not": _not,
    "Sub": _subtract,
    "Neg": _negate,
    "Mul": _multiply,
    "Div": _divide,
    "Floor": _floor,
    "Where": _where,
}
