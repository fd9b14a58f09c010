"""The elementwise operators downstream of a unit of a module, as they were recorded, run again on other values.

They run in float64, and autograd gives the derivative, so that no activation needs a formula of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from vsfix.graph_passes.estimators.activations import Dual
from vsfix.graph_passes.ir.runtime import Float64Array

from .noisy_forward import Key

COPIES = frozenset("detach alias clone _to_copy contiguous lift_fresh".split())
ELEMENTWISE = COPIES | frozenset(
    "relu leaky_relu elu celu selu gelu silu mish hardswish hardsigmoid hardtanh clamp clamp_min clamp_max sigmoid "
    "tanh softplus threshold _prelu_kernel erf exp neg abs mul div add sub pow softshrink hardshrink".split()
)
_LINEAR = COPIES | {"add"}


@dataclass(frozen=True, eq=False)
class Value:
    """A place of an operator's arguments where a recorded value stands."""

    number: int


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator: what it read, as a pattern of its arguments, and what it wrote."""

    key: Key
    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    reads: tuple[int, ...]
    writes: tuple[int, ...]

    @property
    def name(self) -> str:
        """Without the underscore of those that write in place."""
        return plain_name(self.key.operator)


def plain_name(operator: str) -> str:
    """The name of an operator, whether it writes in place or not."""
    return operator.rstrip("_")


@dataclass(frozen=True, eq=False)
class Region:
    """g: what follows a unit, `unit_fit.Elementwise`.

    Attributes:
        source: z.
        output: h; z itself where nothing elementwise follows.
        operators: in order.
        sides: what is added on the way, the key of each by its number as text.
        constants: everything else that the operators read, by number.
    """

    source: int
    output: int
    operators: tuple[Operator, ...] = ()
    sides: Mapping[str, Key] = field(default_factory=dict)
    constants: Mapping[int, torch.Tensor] = field(default_factory=dict)

    @property
    def is_linear(self) -> bool:
        """Whether h is z, or z with something added."""
        return all(operator.name in _LINEAR for operator in self.operators)

    def evaluate(self, z: Float64Array, sides: Mapping[str, Float64Array]) -> Dual:
        """h and dh/dz, of the shape of z, (V, C)."""
        with torch.enable_grad():
            leaf = torch.from_numpy(z).requires_grad_()
            values: dict[int, torch.Tensor] = {self.source: leaf}
            values |= {int(name): torch.from_numpy(side) for name, side in sides.items()}
            for number, constant in self.constants.items():
                values[number] = constant.detach().double().cpu().reshape(-1)
            for operator in self.operators:
                args, kwargs = pytree.tree_map_only(
                    Value, lambda value: values[value.number], (operator.args, dict(operator.kwargs))
                )
                values[operator.writes[0]] = _run_again(operator, args, kwargs)
            h = values[self.output]
            (slope,) = torch.autograd.grad(h.sum(), leaf)
        return h.detach().numpy(), slope.numpy()


def _run_again(operator: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The operator on other values, never in place."""
    if operator.name in COPIES:
        copied: torch.Tensor = args[0]
        return copied
    result: torch.Tensor = getattr(torch.ops.aten, operator.name)(*args, **kwargs)
    return result
