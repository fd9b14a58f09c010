"""ONNX operators that move elements and compute no new ones: shapes, slices, padding, types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx_graphsurgeon as gs
import torch
from torch.nn import functional

from .onnx_call import Operator, OperatorCall, Refusal, along, only

_WHOLE_TYPES = {
    np.dtype(np.bool_): torch.bool,
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int8): torch.int8,
    np.dtype(np.int16): torch.int16,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
}


def constant_tensor(values: Any, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of the graph's constants; every floating point type becomes `dtype`."""
    array = np.asarray(values)
    if array.dtype in _WHOLE_TYPES:
        return torch.from_numpy(np.array(array))
    if array.dtype.kind in "iu":  # the wider unsigned types, which torch computes little with
        return torch.from_numpy(array.astype(np.int64))
    return torch.from_numpy(array.astype(np.float64)).to(dtype)  # bfloat16 and the 8-bit types widen too


def _constant(call: OperatorCall) -> torch.Tensor:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        value = call.attribute(name)
        if isinstance(value, gs.Constant):
            value = value.values
        if value is not None:
            return constant_tensor(value, call.dtype)
    raise ValueError("a Constant without a value that is a number")


def _constant_of_shape(call: OperatorCall) -> torch.Tensor:
    value = call.attribute("value")
    fill = constant_tensor(np.zeros(1, np.float32) if value is None else value.values, call.dtype)
    return fill.reshape(()).expand(call[0].tolist())


def _range(call: OperatorCall) -> torch.Tensor:
    start, limit, delta = (call[index].item() for index in range(3))
    return torch.arange(start, limit, delta, dtype=call[0].dtype)


def _cast(call: OperatorCall) -> torch.Tensor:
    target = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(call.attribute("to"))))
    return call[0].to(_WHOLE_TYPES.get(target, call.dtype))


def _cast_like(call: OperatorCall) -> torch.Tensor:
    return call[0].to(call[1].dtype)


def _shape(call: OperatorCall) -> torch.Tensor:
    start, end = call.attribute("start", 0), call.attribute("end")
    return torch.tensor(list(call[0].shape)[start:end], dtype=torch.int64)


def _size(call: OperatorCall) -> torch.Tensor:
    return torch.tensor(call[0].numel())


def _reshape(call: OperatorCall) -> torch.Tensor:
    x, wanted = call[0], call[1].tolist()
    if not call.attribute("allowzero", 0):
        wanted = [x.shape[axis] if side == 0 else side for axis, side in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(call: OperatorCall) -> torch.Tensor:
    x = call[0]
    rows = math.prod(x.shape[: call.axis(1, x.dim())])
    return x.reshape(rows, -1)


def _squeeze(call: OperatorCall) -> torch.Tensor:
    x = call[0]
    axes = call.axes(1, x.dim())
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(call: OperatorCall) -> torch.Tensor:
    x = call[0]
    given = call.numbers("axes", 1) or []
    for axis in sorted(int(axis) % (x.dim() + len(given)) for axis in given):
        x = x.unsqueeze(axis)
    return x


def _transpose(call: OperatorCall) -> torch.Tensor:
    return call[0].permute(call.attribute("perm", list(range(call[0].dim()))[::-1]))


def _expand(call: OperatorCall) -> torch.Tensor:
    """Both sides may broadcast."""
    wanted = np.broadcast_shapes(tuple(call[0].shape), tuple(call[1].tolist()))
    return call[0].expand(wanted)


def _tile(call: OperatorCall) -> torch.Tensor:
    return call[0].repeat(call[1].tolist())


def _concat(call: OperatorCall) -> torch.Tensor:
    return torch.cat(call.present, call.axis(0, call[0].dim()))


def _split(call: OperatorCall) -> list[torch.Tensor]:
    """By given sizes, or into equal parts of which the last may be smaller."""
    x, axis = call[0], call.axis(0, call[0].dim())
    sizes = call.numbers("split", 1)
    part = math.ceil(x.shape[axis] / len(call.node.outputs))
    return list(torch.split(x, part if sizes is None else [int(size) for size in sizes], axis))


def _slice(call: OperatorCall) -> torch.Tensor:
    """Attributes before opset 10, inputs from there on; bounds are clamped as Python clamps them."""
    x = call[0]
    starts, ends = call.numbers("starts", 1) or [], call.numbers("ends", 2) or []
    axes = call.axes(3, x.dim()) or list(range(len(starts)))
    steps = call.numbers("steps", 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        indices = range(x.shape[axis])[int(start) : int(end) : int(step)]
        if step == 1:
            x = x.narrow(axis, indices.start, len(indices))
        else:
            x = x.index_select(axis, torch.tensor(list(indices), dtype=torch.int64, device=x.device))
    return x


def _gather(call: OperatorCall) -> torch.Tensor:
    x, indices, axis = call[0], call[1].long(), call.axis(0, call[0].dim())
    rows = indices.where(indices >= 0, indices + x.shape[axis]).reshape(-1)
    chosen = x.index_select(axis, rows)
    return chosen.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_elements(call: OperatorCall) -> torch.Tensor:
    x, indices, axis = call[0], call[1].long(), call.axis(0, call[0].dim())
    return x.gather(axis, indices.where(indices >= 0, indices + x.shape[axis]))


def _gather_nd(call: OperatorCall) -> torch.Tensor:
    """The last axis of the indices, (..., k), indexes the first k axes."""
    return call[0][call[1].long().unbind(-1)]


def _scatter_elements(call: OperatorCall) -> torch.Tensor:
    x, indices, axis = call[0], call[1].long(), call.axis(0, call[0].dim())
    scatter = torch.scatter_add if call.attribute("reduction", "none") == "add" else torch.scatter
    return scatter(x, axis, indices.where(indices >= 0, indices + x.shape[axis]), call[2])


def _scatter_nd(call: OperatorCall) -> torch.Tensor:
    adds = call.attribute("reduction", "none") == "add"
    return call[0].index_put(call[1].long().unbind(-1), call[2], accumulate=adds)


def _one_hot(call: OperatorCall) -> torch.Tensor:
    """The values are those off and on; an index that is out of range is off everywhere."""
    depth, (off, on) = int(call[1]), call[2]
    indices = call[0].long().unsqueeze(call.axis(-1, call[0].dim() + 1))
    rank, axis = indices.dim(), call.axis(-1, indices.dim())
    classes = torch.arange(depth).reshape(along(axis, rank))
    return torch.where(indices.where(indices >= 0, indices + depth) == classes, on, off)


def _trilu(call: OperatorCall) -> torch.Tensor:
    diagonal = call.optional(1)
    keep = torch.triu if call.attribute("upper", 1) else torch.tril
    return keep(call[0], 0 if diagonal is None else int(diagonal))


def _pad(call: OperatorCall) -> torch.Tensor:
    """Attributes before opset 11, inputs from there on; negative pads cut."""
    x = call[0]
    pads = [int(pad) for pad in call.numbers("pads", 1) or []]
    axes = [int(axis) % x.dim() for axis in call.numbers("", 3) or range(x.dim())]
    before, after = pads[: len(axes)], pads[len(axes) :]
    mode = call.attribute("mode", "constant")
    if mode == "constant":
        sides = dict(zip(axes, zip(before, after, strict=True), strict=True))
        from_last = [side for axis in reversed(range(x.dim())) for side in sides.get(axis, (0, 0))]
        return functional.pad(x, from_last, value=_fill(call))
    for axis, start, end in zip(axes, before, after, strict=True):
        x = x.index_select(axis, _source_indices(x.shape[axis], start, end, mode).to(x.device))
    return x


def _fill(call: OperatorCall) -> float:
    """The value of a constant padding."""
    given = call.numbers("value", 2)
    return given[0] if given else 0


def _source_indices(length: int, before: int, after: int, mode: str) -> torch.Tensor:
    """The index in the input of each element of a padded axis."""
    indices = torch.arange(-before, length + after)
    if mode == "edge":
        return indices.clamp(0, length - 1)
    if mode == "wrap":
        return indices % length
    period = max(2 * (length - 1), 1)  # reflect: the axis runs to and fro without repeating its ends
    indices = indices % period
    return torch.minimum(indices, period - indices)


def _refuse_text(node: gs.Node, opset: int) -> str | None:
    """Constants that are no tensor of numbers."""
    known = ("value", "value_float", "value_floats", "value_int", "value_ints")
    return None if any(name in node.attrs for name in known) else "it holds text or a sparse tensor"


def _refuse_types(*attributes: str) -> Refusal:
    """Types that are no numbers."""

    def refuse(node: gs.Node, opset: int) -> str | None:
        types = [node.attrs.get(name) for name in attributes]
        return "text can't be evaluated" if onnx.TensorProto.STRING in types else None

    return refuse


SHAPES: Mapping[str, Operator] = {
    "Constant": Operator(_constant, _refuse_text),
    "ConstantOfShape": Operator(_constant_of_shape),
    "Range": Operator(_range),
    "Cast": Operator(_cast, _refuse_types("to")),
    "CastLike": Operator(_cast_like),
    "Shape": Operator(_shape),
    "Size": Operator(_size),
    "Identity": Operator(lambda call: call[0]),
    "Dropout": Operator(lambda call: call[0]),
    "Reshape": Operator(_reshape),
    "Flatten": Operator(_flatten),
    "Squeeze": Operator(_squeeze),
    "Unsqueeze": Operator(_unsqueeze),
    "Transpose": Operator(_transpose),
    "Expand": Operator(_expand),
    "Tile": Operator(_tile),
    "Concat": Operator(_concat),
    "Split": Operator(_split, outputs=None),
    "Slice": Operator(_slice),
    "Gather": Operator(_gather),
    "GatherElements": Operator(_gather_elements),
    "GatherND": Operator(_gather_nd, only("batch_dims", 0)),
    "ScatterElements": Operator(_scatter_elements, only("reduction", "none", "add")),
    "ScatterND": Operator(_scatter_nd, only("reduction", "none", "add")),
    "OneHot": Operator(_one_hot),
    "Trilu": Operator(_trilu),
    "Pad": Operator(_pad),
}
