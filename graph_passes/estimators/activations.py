"""The elementwise function g that follows a tensor z, with its derivative: h = g(z), or h = g(z + s) after a sum.

Exporters write an activation as one node (Relu, Clip, HardSwish) or as several (z * sigmoid(z); the erf form of GELU).
All of them are regions of elementwise nodes that z enters and one tensor h leaves. The region is evaluated in float64
with dual numbers (value, dg/dz), so that no activation needs a formula of its own:

    (u, u')  ->  (f(u), f'(u) u')

A tensor s that is added to z in between, as the shortcut of a residual block, is a constant: its derivative is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import Tensor, is_standard, upstream_constant
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.ir.stored_values import stored_values

Dual = tuple[Float64Array, Float64Array]
"""A value and its derivative in z, of one shape."""

MAX_NODES = 16  # of a region; the longest decomposed activation has about ten


@dataclass(frozen=True, eq=False)
class Activation:
    """A region of elementwise nodes.

    Attributes:
        source: z.
        output: h, the one tensor that leaves the region; z itself where nothing elementwise follows.
        nodes: of the region, in order.
        sides: tensors that are added in between and do not depend on z.
    """

    source: Tensor
    output: Tensor
    nodes: tuple[gs.Node, ...] = ()
    sides: tuple[Tensor, ...] = ()

    @property
    def is_linear(self) -> bool:
        """Whether h is z, or z with something added."""
        return all(node.op in ("Add", "Identity") for node in self.nodes)

    def evaluate(self, z: Float64Array, sides: Mapping[str, Float64Array]) -> Dual:
        """h and dh/dz.

        Args:
            z: shape (V, C), the channels last.
            sides: by the name of the tensor, of the same shape.
        """
        values: dict[int, Dual] = {id(self.source): (z, np.ones_like(z))}
        for side in self.sides:
            values[id(side)] = (sides[side.name], np.zeros_like(z))
        for node in self.nodes:
            operands = [_operand(tensor, values, z) for tensor in node.inputs if not tensor.is_empty()]
            with np.errstate(all="ignore"):
                values[id(node.outputs[0])] = _FUNCTIONS[node.op](node, operands)
        return values[id(self.output)]


@dataclass(frozen=True, eq=False)
class GraphOrder:
    """The order, the outputs and the shapes of a graph, for the search for regions.

    Attributes:
        position: of each node, by its id.
        returned: the ids of the outputs of the graph.
        shapes: of tensors in one run, by name.
    """

    position: Mapping[int, int]
    returned: Collection[int]
    shapes: Mapping[str, tuple[int, ...]]


def find_activation(z: Tensor, axis: int, order: GraphOrder) -> Activation:
    """The largest region downstream of z that one tensor leaves.

    Args:
        z: the tensor that is scaled and shifted.
        axis: of its channels, 1 or -1.
        order: of the graph.
    """
    inside: dict[int, Tensor] = {id(z): z}
    nodes: list[gs.Node] = []
    sides: list[Tensor] = []
    best = Activation(z, z)
    waiting = list(z.outputs)
    while waiting and len(nodes) < MAX_NODES:
        waiting.sort(key=lambda node: order.position.get(id(node), -1))
        node = waiting.pop(0)
        found = _sides_of(node, inside, z, axis, order)
        if found is None:
            continue
        nodes.append(node)
        sides += [side for side in found if not any(side is known for known in sides)]
        out = node.outputs[0]
        inside[id(out)] = out
        waiting += [reader for reader in out.outputs if not any(reader is known for known in (*waiting, *nodes))]
        members = {id(member) for member in nodes}
        leaving = [tensor for tensor in inside.values() if _leaves(tensor, members, order.returned)]
        if len(leaving) == 1 and leaving[0] is out:
            best = Activation(z, out, tuple(nodes), tuple(sides))
    return best


def _leaves(tensor: Tensor, members: Collection[int], returned: Collection[int]) -> bool:
    """Whether something outside of the region reads a tensor of it."""
    return id(tensor) in returned or any(id(reader) not in members for reader in tensor.outputs) or not tensor.outputs


def _sides_of(
    node: gs.Node, inside: Mapping[int, Tensor], z: Tensor, axis: int, order: GraphOrder
) -> list[Tensor] | None:
    """The tensors that a node of the region reads from outside of it; None where it can't be part of the region."""
    if node.op not in _FUNCTIONS or not is_standard(node) or len(node.outputs) != 1:
        return None
    if id(node) not in order.position:  # it stands in a subgraph of an If, Loop or Scan
        return None
    shape = order.shapes.get(z.name)
    begin = order.position.get(id(z.inputs[0]), -1) if z.inputs else -1
    sides: list[Tensor] = []
    for tensor in node.inputs:
        if tensor.is_empty() or id(tensor) in inside:
            continue
        constant = upstream_constant(tensor)
        if constant is not None:
            if not _is_per_channel(constant, shape, axis):
                return None
            continue
        known = not tensor.inputs or order.position.get(id(tensor.inputs[0]), begin + 1) < begin
        if node.op != "Add" or not known or shape is None or order.shapes.get(tensor.name) != shape:
            return None
        sides.append(tensor)
    return sides


def _is_per_channel(constant: gs.Constant, shape: tuple[int, ...] | None, axis: int) -> bool:
    """Whether a constant is one value, or one for each channel, beside a tensor of that shape."""
    size = int(np.prod(constant.shape))
    if size == 1:
        return True
    if shape is None or len(constant.shape) > len(shape):
        return False
    sides = (1,) * (len(shape) - len(constant.shape)) + tuple(constant.shape)
    return bool(sides[axis] == shape[axis] == size)


def _operand(tensor: Tensor, values: Mapping[int, Dual], z: Float64Array) -> Dual:
    """The value of an operand; a constant has the derivative 0."""
    if id(tensor) in values:
        return values[id(tensor)]
    constant = upstream_constant(tensor)
    if constant is None:
        raise KeyError(tensor.name)
    stored = stored_values(constant).astype(np.float64).reshape(-1)
    return np.broadcast_to(stored, z.shape), np.zeros(())


def _sigmoid(u: Float64Array) -> Float64Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * u)))


def _softplus(u: Float64Array) -> Float64Array:
    return np.asarray(np.logaddexp(0, u))


def _erf(u: Float64Array) -> Float64Array:
    """Abramowitz and Stegun 7.1.26, off by 1.5e-7 at most."""
    t = 1 / (1 + 0.3275911 * np.abs(u))
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    return np.asarray(np.sign(u) * (1 - series * np.exp(-u * u)))


def _chain(f: Callable[[Float64Array, gs.Node], Dual]) -> Callable[[gs.Node, list[Dual]], Dual]:
    """A function of one operand, from its value and its own derivative."""

    def evaluate(node: gs.Node, operands: list[Dual]) -> Dual:
        value, slope = f(operands[0][0], node)
        return value, slope * operands[0][1]

    return evaluate


def _attribute(node: gs.Node, name: str, default: float) -> float:
    return float(node.attrs.get(name, default))


def _elu(u: Float64Array, alpha: float, gamma: float = 1.0, stretch: float = 1.0) -> Dual:
    low = alpha * np.expm1(np.minimum(u, 0) / stretch)
    slope = np.where(u > 0, 1.0, alpha / stretch * np.exp(np.minimum(u, 0) / stretch))
    return gamma * np.where(u > 0, u, low), gamma * slope


def _hard_sigmoid(u: Float64Array, alpha: float, beta: float) -> Dual:
    raw = alpha * u + beta
    return np.clip(raw, 0, 1), np.where((raw > 0) & (raw < 1), alpha, 0.0)


def _gated(u: Float64Array, gate: Dual) -> Dual:
    """u times a gate of u."""
    return u * gate[0], gate[0] + u * gate[1]


def _normal(u: Float64Array) -> Dual:
    """The distribution function of the normal distribution, and its density."""
    return 0.5 * (1 + _erf(u / np.sqrt(2))), np.exp(-0.5 * u * u) / np.sqrt(2 * np.pi)


def _tanh_of_softplus(u: Float64Array) -> Dual:
    value = np.tanh(_softplus(u))
    return value, (1 - value**2) * _sigmoid(u)


def _tanh_gate(u: Float64Array) -> Dual:
    """The gate of GELU in its tanh approximation."""
    inner = np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)
    value = np.tanh(inner)
    slope = 0.5 * (1 - value**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * u**2)
    return 0.5 * (1 + value), slope


def _logistic(u: Float64Array, steepness: float = 1.0) -> Dual:
    value = _sigmoid(steepness * u)
    return value, steepness * value * (1 - value)


def _gelu(u: Float64Array, node: gs.Node) -> Dual:
    return _gated(u, _tanh_gate(u) if node.attrs.get("approximate", "none") == "tanh" else _normal(u))


def _clip(node: gs.Node, operands: list[Dual]) -> Dual:
    """Clip of any opset: the bounds are attributes or operands, and an operand that is left out has no name."""
    given = iter(operands[1:])
    bounds: list[Float64Array] = []
    for index, name, open_end in ((1, "min", -np.inf), (2, "max", np.inf)):
        has_input = len(node.inputs) > index and not node.inputs[index].is_empty()
        bounds.append(next(given)[0] if has_input else np.asarray(_attribute(node, name, open_end)))
    (u, slope), (low, high) = operands[0], bounds
    return np.clip(u, low, high), np.where((u > low) & (u < high), slope, 0.0)


def _product(node: gs.Node, operands: list[Dual]) -> Dual:
    (u, du), (v, dv) = operands
    return u * v, du * v + u * dv


def _quotient(node: gs.Node, operands: list[Dual]) -> Dual:
    (u, du), (v, dv) = operands
    return u / v, (du * v - u * dv) / v**2


def _power(node: gs.Node, operands: list[Dual]) -> Dual:
    (u, du), (k, dk) = operands
    slope = np.where(k == 0, 0.0, k * u ** (k - 1)) * du
    return u**k, slope + np.where(dk == 0, 0.0, u**k * np.log(u) * dk)


def _prelu(node: gs.Node, operands: list[Dual]) -> Dual:
    (u, du), (slope, _) = operands
    return np.where(u > 0, u, slope * u), np.where(u > 0, 1.0, slope) * du


def _leaky(u: Float64Array, node: gs.Node) -> Dual:
    slope = _attribute(node, "alpha", 0.01)
    return np.where(u > 0, u, slope * u), np.where(u > 0, 1.0, slope)


_FUNCTIONS: dict[str, Callable[[gs.Node, list[Dual]], Dual]] = {
    "Identity": lambda node, operands: operands[0],
    "Add": lambda node, operands: (operands[0][0] + operands[1][0], operands[0][1] + operands[1][1]),
    "Sub": lambda node, operands: (operands[0][0] - operands[1][0], operands[0][1] - operands[1][1]),
    "Mul": _product,
    "Div": _quotient,
    "Pow": _power,
    "Clip": _clip,
    "PRelu": _prelu,
    "Neg": _chain(lambda u, node: (-u, np.asarray(-1.0))),
    "Abs": _chain(lambda u, node: (np.abs(u), np.sign(u))),
    "Exp": _chain(lambda u, node: (np.exp(u), np.exp(u))),
    "Erf": _chain(lambda u, node: (_erf(u), 2 / np.sqrt(np.pi) * np.exp(-u * u))),
    "Relu": _chain(lambda u, node: (np.maximum(u, 0), (u > 0).astype(np.float64))),
    "LeakyRelu": _chain(_leaky),
    "ThresholdedRelu": _chain(
        lambda u, node: (
            np.where(u > _attribute(node, "alpha", 1.0), u, 0.0),
            (u > _attribute(node, "alpha", 1.0)).astype(np.float64),
        )
    ),
    "Sigmoid": _chain(lambda u, node: _logistic(u)),
    "Tanh": _chain(lambda u, node: (np.tanh(u), 1 - np.tanh(u) ** 2)),
    "Softplus": _chain(lambda u, node: (_softplus(u), _sigmoid(u))),
    "Softsign": _chain(lambda u, node: (u / (1 + np.abs(u)), 1 / (1 + np.abs(u)) ** 2)),
    "Elu": _chain(lambda u, node: _elu(u, _attribute(node, "alpha", 1.0))),
    "Celu": _chain(lambda u, node: _elu(u, _attribute(node, "alpha", 1.0), stretch=_attribute(node, "alpha", 1.0))),
    "Selu": _chain(
        lambda u, node: _elu(
            u, _attribute(node, "alpha", 1.67326319217681884765625), _attribute(node, "gamma", 1.05070102214813232)
        )
    ),
    "HardSigmoid": _chain(
        lambda u, node: _hard_sigmoid(u, _attribute(node, "alpha", 0.2), _attribute(node, "beta", 0.5))
    ),
    "HardSwish": _chain(lambda u, node: _gated(u, _hard_sigmoid(u, 1 / 6, 0.5))),
    "Mish": _chain(lambda u, node: _gated(u, _tanh_of_softplus(u))),
    "Swish": _chain(lambda u, node: _gated(u, _logistic(u, _attribute(node, "alpha", 1.0)))),
    "Gelu": _chain(_gelu),
}
