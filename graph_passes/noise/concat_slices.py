"""The tensors that a Slice really reads, where a Concat stands upstream of it.

Dense connections take channels apart that were put together before: what is sliced may leave out the noisy operand.
Between the two may stand whatever keeps the channels apart: activations, BatchNorm, sums and products of equal shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import Tensor, is_standard, upstream_constant

_PARAMETERS = ("starts", "ends", "axes", "steps")
_ELEMENTWISE = frozenset(
    "Identity Cast Relu LeakyRelu PRelu Elu Selu Celu Gelu Sigmoid HardSigmoid HardSwish Mish Softplus Softsign Tanh "
    "Erf Exp Log Sqrt Neg Abs Clip Add Sub Mul Div Pow Min Max Sum Mean".split()
)
_MAX_NODES = 64  # nodes between a Slice and the Concat; past that the whole tensor counts as read


@dataclass
class SlicedOperands:
    """The tensors that a Slice reads.

    Attributes:
        tensors: the operands of the upstream Concats that are taken from, and what else was met between.
        passed: the nodes between them and the Slice.
    """

    tensors: list[Tensor] = field(default_factory=list)
    passed: list[gs.Node] = field(default_factory=list)


def sliced_operands(node: gs.Node) -> SlicedOperands | None:
    """The operands of the upstream Concats that a Slice reads.

    Args:
        node: a Slice.

    Returns:
        None where no Concat stands upstream, every operand is read, or the file does not state an extent.
    """
    for concat in _upstream_concats(node.inputs[0]):
        axis = int(concat.attrs["axis"])
        rank = len(concat.inputs[0].shape or ())
        extents = [_extent(tensor, axis) for tensor in concat.inputs]
        taken = _taken(node, axis, rank, sum(extents)) if min(extents) >= 0 else None
        if taken is not None and len(taken) < sum(extents):
            found = SlicedOperands()
            _follow(node.inputs[0], axis % rank, taken, found)
            return found
    return None


def _upstream_concats(tensor: Tensor) -> Iterator[gs.Node]:
    """The nearest Concats that a tensor comes from, with nothing between that would mix channels."""
    pending, seen = [tensor], 0
    while pending and seen < _MAX_NODES:
        node = _producer(pending.pop())
        seen += 1
        if node is None:
            continue
        if _is(node, "Concat"):
            yield node
        elif _is(node, *_ELEMENTWISE, "BatchNormalization", "Slice"):
            pending += node.inputs if _is(node, *_ELEMENTWISE) else node.inputs[:1]


def _follow(tensor: Tensor, axis: int, taken: range, found: SlicedOperands) -> None:
    """Goes back from the indices that are taken of a tensor to the tensors that they come from."""
    node = _producer(tensor)
    if node is None or len(found.passed) >= _MAX_NODES:
        found.tensors.append(tensor)
    elif _is(node, "Concat") and (parts := _parts(node, axis, taken)) is not None:
        for operand, indices in parts:
            _follow(operand, axis, indices, found)
    elif (operands := _same_channels(node, axis)) is not None:
        found.passed.append(node)
        for operand in operands:
            _follow(operand, axis, taken, found)
    else:
        found.tensors.append(tensor)


def _parts(concat: gs.Node, axis: int, taken: range) -> list[tuple[Tensor, range]] | None:
    """The operands of a Concat along `axis` from which indices are taken, each with its own indices."""
    rank = len(concat.inputs[0].shape or ())
    extents = [_extent(tensor, axis) for tensor in concat.inputs]
    if int(concat.attrs["axis"]) % max(rank, 1) != axis or min(extents) < 0:
        return None
    parts = []
    for tensor, end, extent in zip(concat.inputs, np.cumsum(extents).tolist(), extents, strict=True):
        inside = [index for index in taken if end - extent <= index < end]
        if inside:
            start = end - extent
            parts.append((tensor, range(inside[0] - start, inside[-1] - start + 1, taken.step)))
    return parts


def _same_channels(node: gs.Node, axis: int) -> list[Tensor] | None:
    """The data that a node reads without mixing what lies along `axis`; None where it mixes, or that is unknown."""
    if _is(node, "BatchNormalization") and axis == 1 and len(node.outputs) == 1:
        return [node.inputs[0]]
    if _is(node, "Slice"):
        extent = _extent(node.inputs[0], axis)
        whole = extent >= 0 and _taken(node, axis, len(node.inputs[0].shape), extent) == range(extent)
        return [node.inputs[0]] if whole else None
    if not _is(node, *_ELEMENTWISE):
        return None
    operands = [tensor for tensor in node.inputs if not tensor.is_empty() and upstream_constant(tensor) is None]
    ranks = {len(tensor.shape or ()) for tensor in operands}
    extents = {_extent(tensor, axis) for tensor in operands}
    if len(ranks) != 1 or len(extents) != 1 or min(extents) < 0:
        return None
    constants = [constant for tensor in node.inputs if (constant := upstream_constant(tensor)) is not None]
    fits = all(_fits(constant.values.shape, min(ranks), axis, min(extents)) for constant in constants)
    return operands if fits else None


def _fits(shape: tuple[int, ...], rank: int, axis: int, extent: int) -> bool:
    """Whether a constant of this shape does not change the rank and the extent along an axis."""
    position = axis - rank + len(shape)
    return len(shape) <= rank and (position < 0 or shape[position] in (1, extent))


def _producer(tensor: Tensor) -> gs.Node | None:
    return tensor.inputs[0] if len(tensor.inputs) == 1 else None


def _is(node: gs.Node, *operators: str) -> bool:
    return node.op in operators and is_standard(node)


def _extent(tensor: Tensor, axis: int) -> int:
    """The length of a tensor along an axis, -1 where the file does not state it."""
    shape = tensor.shape or ()
    side = shape[axis] if len(shape) > abs(axis) else None
    return int(side) if isinstance(side, int | np.integer) else -1


def _taken(node: gs.Node, axis: int, rank: int, extent: int) -> range | None:
    """The indices that a Slice takes along one axis; all where it cuts other axes, None where that is unknown."""
    if any(upstream_constant(tensor) is None for tensor in node.inputs[1:] if not tensor.is_empty()):
        return None
    starts, ends, axes, steps = (_numbers(node, name, position) for position, name in enumerate(_PARAMETERS, start=1))
    if starts is None or ends is None:
        return None
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    for start, end, along, step in zip(starts, ends, axes, steps, strict=True):
        if along % rank == axis % rank:
            return range(*slice(start, end, step).indices(extent)) if step > 0 else None
    return range(extent)


def _numbers(node: gs.Node, name: str, position: int) -> list[int] | None:
    """A parameter of a Slice: an attribute before opset 10, an input from then on; None where it is absent."""
    if name in node.attrs:
        return [int(value) for value in node.attrs[name]]
    if len(node.inputs) <= position or node.inputs[position].is_empty():
        return None
    constant = upstream_constant(node.inputs[position])
    assert constant is not None, "asked before"
    return [int(value) for value in np.asarray(constant.values).reshape(-1)]
