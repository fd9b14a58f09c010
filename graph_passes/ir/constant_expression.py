"""What the graph computes from constants alone, taken apart: into factors and powers, and into terms.

    a * b / sqrt(c + e)   has the factors   a^1, b^1, (c + e)^-1/2
    b - m * s             has the terms     +b, -(m * s)

Operators that only change the shape or the float type of a value are looked through.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from .fold_constants import FOLDABLE_OPERATORS, evaluate_constant
from .runtime import Float64Array
from .tensors import Tensor, constant_behind

_SAME_VALUES = frozenset({"Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten"})
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})


@dataclass(frozen=True, eq=False)
class Factor:
    """One factor of a product: the tensor, its values in a row, and the power that it is raised to."""

    tensor: Tensor
    values: Float64Array
    power: float

    @property
    def raised(self) -> Float64Array:
        """The values raised to the power."""
        with np.errstate(all="ignore"):
            return np.asarray(self.values**self.power)

    def equals(self, other: Factor) -> bool:
        """Whether both are the same tensor, or equal values, to the same power."""
        return self.power == other.power and (
            self.tensor is other.tensor or np.array_equal(self.values, other.values, equal_nan=True)
        )


def constant_tensors(graph: gs.Graph) -> set[int]:
    """The ids of the tensors of the main graph that are computed from constants alone."""
    known: set[int] = set()
    for node in graph.nodes:
        if node.op in FOLDABLE_OPERATORS and all(is_constant(tensor, known) for tensor in node.inputs):
            known.update(id(tensor) for tensor in node.outputs)
    return known


def is_constant(tensor: Tensor, known: set[int]) -> bool:
    """Whether a tensor is a constant, one that was left out, or among those of `constant_tensors`."""
    return isinstance(tensor, gs.Constant) or tensor.is_empty() or id(tensor) in known


def factors(graph: gs.Graph, tensor: Tensor, power: float = 1.0) -> list[Factor]:
    """The factors of a constant expression; their product, element by element, is the expression.

    Raises:
        ArithmeticError: the expression can't be computed.
    """
    tensor = look_through(tensor)
    producer = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if producer is not None and producer.op in ("Mul", "Div"):
        first, second = producer.inputs
        sign = 1 if producer.op == "Mul" else -1
        return factors(graph, first, power) + factors(graph, second, sign * power)
    if producer is not None and producer.op in ("Sqrt", "Reciprocal"):
        return factors(graph, producer.inputs[0], power * (0.5 if producer.op == "Sqrt" else -1))
    if producer is not None and producer.op == "Pow":
        exponent = constant_behind(producer.inputs[1])
        if exponent is not None and np.size(exponent.values) == 1:
            return factors(graph, producer.inputs[0], power * float(np.reshape(exponent.values, ())))
    return [Factor(tensor, values_of(graph, tensor), power)]


def terms(tensor: Tensor, sign: int = 1) -> list[tuple[Tensor, int]]:
    """The terms of a constant expression with their signs."""
    tensor = look_through(tensor)
    producer = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if producer is not None and producer.op in ("Add", "Sub"):
        first, second = producer.inputs
        return terms(first, sign) + terms(second, sign if producer.op == "Add" else -sign)
    if producer is not None and producer.op == "Neg":
        return terms(producer.inputs[0], -sign)
    return [(tensor, sign)]


def look_through(tensor: Tensor) -> Tensor:
    """The tensor whose values `tensor` holds in another shape or float type."""
    while isinstance(tensor, gs.Variable) and len(tensor.inputs) == 1:
        producer = tensor.inputs[0]
        if producer.op not in _SAME_VALUES and not (producer.op == "Cast" and producer.attrs.get("to") in _FLOATS):
            break
        tensor = producer.inputs[0]
    return tensor


def values_of(graph: gs.Graph, tensor: Tensor) -> Float64Array:
    """The values of a constant expression in a row.

    Raises:
        ArithmeticError: it can't be computed.
    """
    values = evaluate_constant(graph, tensor)
    if isinstance(values, str):
        raise ArithmeticError(values)
    return np.asarray(values, dtype=np.float64).reshape(-1)
