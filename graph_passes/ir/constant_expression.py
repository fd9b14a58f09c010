"""Constant expressions of a graph, taken apart: into factors and powers, and into terms.

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
from .graph import Tensor, captured_tensors, is_graph_output, is_standard, upstream_constant
from .runtime import Float64Array

_SAME_VALUES = frozenset({"Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten"})
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})


_SIGNS = {"Add": 1, "Sub": -1, "Mul": 1, "Div": -1}


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
        exponent = upstream_constant(producer.inputs[1])
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


@dataclass(frozen=True, eq=False)
class Step:
    """One node of a chain.

    Attributes:
        node: the Add, Sub, Mul or Div.
        data: the operand that is not constant.
        operand: the constant expression.
        sign: -1 where the operand is subtracted or divided by.
    """

    node: gs.Node
    data: Tensor
    operand: Tensor
    sign: int

    @property
    def shifts(self) -> bool:
        """Whether the operand is added, not multiplied."""
        return self.node.op in ("Add", "Sub")

    @property
    def output(self) -> Tensor:
        """The tensor that the node computes."""
        tensor: Tensor = self.node.outputs[0]
        return tensor


Chain = list[Step]


def elementwise_chains(graph: gs.Graph, constants: set[int]) -> list[Chain]:
    """The longest chains of the main graph whose inner tensors nothing else reads, in the order of the graph.

    Args:
        graph: nodes in topological order; not changed.
        constants: the ids of the tensors that are computed from constants alone.
    """
    captured = {id(tensor) for node in graph.nodes for tensor in captured_tensors(node)}
    chains: list[Chain] = []
    ending: dict[int, Chain] = {}  # by the id of the tensor that the chain ends with, while it may be continued
    for node in graph.nodes:
        step = _step(node, constants)
        if step is None:
            continue
        chain = ending.pop(id(step.data), None)
        if chain is None:
            chain = []
            chains.append(chain)
        chain.append(step)
        output = step.output
        if len(output.outputs) == 1 and id(output) not in captured and not is_graph_output(graph, output):
            ending[id(output)] = chain
    return chains


def _step(node: gs.Node, constants: set[int]) -> Step | None:
    """The node as a step of a chain, or None where it is none."""
    if node.op not in _SIGNS or not is_standard(node) or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    if is_constant(second, constants) and not is_constant(first, constants):
        return Step(node, first, second, _SIGNS[node.op])
    if is_constant(first, constants) and not is_constant(second, constants) and node.op in ("Add", "Mul"):
        return Step(node, second, first, 1)
    return None
