"""Chains of nodes that compute x + a, x - a, x * a or x / a with a constant a, one behind the other."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from .constant_expression import is_constant
from .nodes import is_standard
from .tensors import Tensor, captured_tensors, is_graph_output

_SIGNS = {"Add": 1, "Sub": -1, "Mul": 1, "Div": -1}


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
        """What the node computes."""
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
