"""One node of an ONNX graph, to be evaluated in torch: its inputs, its attributes, and what can be refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import torch

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.ir.graph import label_of

Value = torch.Tensor | list[torch.Tensor]


class UnsupportedOperatorError(ModelError):
    """An operator, or a variant of one, that can't be evaluated in torch; the model needs another method."""


@dataclass(frozen=True)
class OperatorCall:
    """A node and the values that it reads.

    Attributes:
        node: attributes, names and the number of outputs.
        opset: of the graph, which decides what the node means.
        inputs: None where an optional input is left out.
        dtype: the type in which every floating point type of the graph is computed.
    """

    node: gs.Node
    opset: int
    inputs: tuple[torch.Tensor | None, ...]
    dtype: torch.dtype

    def __getitem__(self, index: int) -> torch.Tensor:
        """A required input."""
        tensor = self.optional(index)
        if tensor is None:
            raise ModelError(f"{label_of(self.node)}: input {index} is missing")
        return tensor

    @property
    def present(self) -> list[torch.Tensor]:
        """The inputs that are there, for the operators that take any number."""
        return [tensor for tensor in self.inputs if tensor is not None]

    def optional(self, index: int) -> torch.Tensor | None:
        """An input, or None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.node.attrs.get(name, default)

    def numbers(self, name: str, index: int | None = None) -> list[Any] | None:
        """Attribute `name` of older opsets, or input `index` of newer ones; None where neither is there."""
        tensor = self.optional(index) if index is not None else None
        if tensor is not None:
            return list(tensor.reshape(-1).tolist())
        value = self.attribute(name)
        return None if value is None else list(np.atleast_1d(value))

    def axes(self, index: int, rank: int) -> list[int] | None:
        """The `axes` of a reduction or a squeeze, counted from the front; None where they are left out."""
        axes = self.numbers("axes", index)
        return None if axes is None else [int(axis) % max(rank, 1) for axis in axes]

    def axis(self, default: int, rank: int) -> int:
        """The `axis` attribute, counted from the front."""
        axis = int(self.attribute("axis", default))
        return axis + rank if axis < 0 else axis


Evaluate = Callable[[OperatorCall], Value]
Refusal = Callable[[gs.Node, int], str | None]
"""(node, opset) -> why this variant of the operator can't be evaluated, or None."""


@dataclass(frozen=True)
class Operator:
    """The evaluation of an operator in torch.

    Attributes:
        evaluate: its value in torch, or the list of its values where it has several outputs.
        refuse: which of its variants can't be evaluated; None where all can.
        outputs: how many of its outputs are computed; None for any number.
    """

    evaluate: Evaluate
    refuse: Refusal | None = None
    outputs: int | None = 1

    def refusal(self, node: gs.Node, opset: int) -> str | None:
        """Why `node` can't be evaluated, or None."""
        wanted = max((number for number, out in enumerate(node.outputs, 1) if not out.is_empty()), default=1)
        if self.outputs is not None and wanted > self.outputs:
            return f"its output {wanted} is not computed"
        return None if self.refuse is None else self.refuse(node, opset)


def along(axis: int, rank: int) -> list[int]:
    """The shape (1, ..., -1, ..., 1) in which a vector broadcasts along one axis of a tensor of some rank."""
    return [-1 if index == axis else 1 for index in range(rank)]


def only(attribute: str, default: Any, *allowed: Any) -> Refusal:
    """Refuses every value of an attribute but `default` and those `allowed`."""

    def refuse(node: gs.Node, opset: int) -> str | None:
        value = node.attrs.get(attribute, default)
        return None if value in (default, *allowed) else f"{attribute} = {value} is not supported"

    return refuse


def any_of(*refusals: Refusal) -> Refusal:
    """Refuses what any of them refuses."""

    def refuse(node: gs.Node, opset: int) -> str | None:
        return next((reason for one in refusals if (reason := one(node, opset)) is not None), None)

    return refuse
