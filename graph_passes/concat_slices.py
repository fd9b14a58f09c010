"""Which operands of a Concat a Slice behind it really reads.

Dense connections take channels apart that were put together before: what is sliced may leave out the noisy operand.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from .tensors import Tensor, constant_behind

_PARAMETERS = ("starts", "ends", "axes", "steps")


def sliced_operands(node: gs.Node) -> list[Tensor] | None:
    """The operands of the Concat in front that a Slice reads.

    Args:
        node: a Slice.

    Returns:
        None where something else than a Concat stands in front, the axes differ, or an extent is not in the file.
    """
    data = node.inputs[0]
    concat = data.inputs[0] if len(data.inputs) == 1 else None
    if concat is None or concat.op != "Concat" or concat.domain not in (None, "", "ai.onnx"):
        return None
    axis = int(concat.attrs["axis"])
    extents = [_extent(tensor, axis) for tensor in concat.inputs]
    if min(extents) < 0:
        return None
    ends = np.cumsum(extents)
    taken = _taken(node, axis, len(concat.inputs[0].shape), int(ends[-1]))
    if taken is None:
        return None
    return [
        tensor
        for tensor, end, extent in zip(concat.inputs, ends, extents, strict=True)
        if any(end - extent <= index < end for index in taken)
    ]


def _extent(tensor: Tensor, axis: int) -> int:
    """The length of a tensor along an axis, -1 where the file does not say."""
    shape = tensor.shape or ()
    side = shape[axis] if len(shape) > abs(axis) else None
    return int(side) if isinstance(side, int | np.integer) else -1


def _taken(node: gs.Node, axis: int, rank: int, extent: int) -> range | None:
    """The indices that a Slice takes along one axis; all where it cuts other axes, None where that can't be told."""
    if any(constant_behind(tensor) is None for tensor in node.inputs[1:] if not tensor.is_empty()):
        return None
    starts, ends, axes, steps = (_numbers(node, name, place) for place, name in enumerate(_PARAMETERS, start=1))
    if starts is None or ends is None:
        return None
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    for start, end, along, step in zip(starts, ends, axes, steps, strict=True):
        if along % rank == axis % rank:
            return range(*slice(start, end, step).indices(extent)) if step > 0 else None
    return range(extent)


def _numbers(node: gs.Node, name: str, place: int) -> list[int] | None:
    """A parameter of a Slice: an attribute before opset 10, an input from then on; None where it is not there."""
    if name in node.attrs:
        return [int(value) for value in node.attrs[name]]
    if len(node.inputs) <= place or node.inputs[place].is_empty():
        return None
    constant = constant_behind(node.inputs[place])
    assert constant is not None, "asked before"
    return [int(value) for value in np.asarray(constant.values).reshape(-1)]
