"""ONNX operators that change the number of positions of an image: Resize, Upsample, DepthToSpace, SpaceToDepth.

Resize works axis by axis: each index of the output has a coordinate in the input, and takes the value there (nearest)
or the mean of its two neighbours, weighted by their distance (linear).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs
import torch

from vsfix.graph_passes.ir.runtime import Float64Array

from .onnx_call import Operator, OperatorCall, along, any_of, only


def _resize(call: OperatorCall) -> torch.Tensor:
    x = call[0]
    axes = [int(axis) % x.dim() for axis in call.attribute("axes") or range(x.dim())]
    for axis, (length, scale) in zip(axes, _lengths(call, axes), strict=True):
        if length != x.shape[axis] or scale != 1:
            x = _resize_axis(call, x, axis, length, scale)
    return x


def _lengths(call: OperatorCall, axes: list[int]) -> list[tuple[int, float]]:
    """The new length and the scale of each axis, from the scales or from the sizes, whichever there is."""
    old = [call[0].shape[axis] for axis in axes]
    sizes = call.numbers("", 3)
    scales = call.numbers("scales", 1 if call.node.op == "Upsample" or call.opset < 11 else 2)
    if sizes:
        return [(int(size), int(size) / length) for size, length in zip(sizes, old, strict=True)]
    return [(math.floor(length * scale), float(scale)) for length, scale in zip(old, scales or [], strict=True)]


def _resize_axis(call: OperatorCall, x: torch.Tensor, axis: int, length: int, scale: float) -> torch.Tensor:
    """One axis of x at its new length."""
    old = x.shape[axis]
    where = _coordinates(_coordinate_mode(call), old, length, scale)
    if call.attribute("mode", "nearest") == "nearest":
        indices = np.clip(_nearest(call, where), 0, old - 1).astype(np.int64)
        return x.index_select(axis, torch.from_numpy(indices).to(x.device))
    where = np.clip(where, 0, old - 1)
    left = np.floor(where).astype(np.int64)
    right = np.minimum(left + 1, old - 1)
    weight = torch.from_numpy(where - left).to(x).reshape(along(axis, x.dim()))
    first, second = (x.index_select(axis, torch.from_numpy(indices).to(x.device)) for indices in (left, right))
    return first + weight * (second - first)


def _coordinate_mode(call: OperatorCall) -> str:
    """Upsample and the Resize of opset 10 know one mode only."""
    if call.node.op == "Upsample" or call.opset < 11:
        return "asymmetric"
    return str(call.attribute("coordinate_transformation_mode", "half_pixel"))


def _coordinates(mode: str, old: int, length: int, scale: float) -> Float64Array:
    """The coordinate in the input of each index of the output."""
    indices = np.arange(length, dtype=np.float64)
    if mode == "asymmetric":
        return indices / scale
    if mode == "align_corners":
        return indices * (old - 1) / (length - 1) if length > 1 else indices * 0
    if mode == "pytorch_half_pixel" and length == 1:
        return indices * 0
    if mode == "half_pixel_symmetric":
        offset = old / 2 * (1 - length / (scale * old))
        return offset + (indices + 0.5) / scale - 0.5
    return (indices + 0.5) / scale - 0.5


def _nearest(call: OperatorCall, where: Float64Array) -> Float64Array:
    """Coordinates to whole numbers."""
    floor_only = call.node.op == "Upsample" or call.opset < 11
    mode = "floor" if floor_only else call.attribute("nearest_mode", "round_prefer_floor")
    if mode == "floor":
        return np.floor(where)
    if mode == "ceil":
        return np.ceil(where)
    return np.ceil(where - 0.5) if mode == "round_prefer_floor" else np.floor(where + 0.5)


def _depth_to_space(call: OperatorCall) -> torch.Tensor:
    x, b = call[0], int(call.attribute("blocksize"))
    n, c, h, w = x.shape
    if call.attribute("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(call: OperatorCall) -> torch.Tensor:
    x, b = call[0], int(call.attribute("blocksize"))
    n, c, h, w = x.shape
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


def _refuse_coordinates(node: gs.Node, opset: int) -> str | None:
    """Cropping while resizing takes the region from a third input."""
    mode = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    known = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
    return None if mode in known else f"coordinate_transformation_mode = {mode} is not supported"


_REFUSE = any_of(
    only("mode", "nearest", "linear"),
    only("antialias", 0),
    only("keep_aspect_ratio_policy", "stretch"),
    _refuse_coordinates,
)

RESIZING: Mapping[str, Operator] = {
    "Resize": Operator(_resize, _REFUSE),
    "Upsample": Operator(_resize, _REFUSE),
    "DepthToSpace": Operator(_depth_to_space),
    "SpaceToDepth": Operator(_space_to_depth),
}
