"""The variance that noise adds to a tensor through linear maps, from the graph alone.

Behind independent noise, X_j = sum_i w_ji n_i x_i with E n = 1 and Var n = s2 has

    Var_train[X_j] - Var_test[X_j] = s2 sum_i w_ji^2 E[x_i^2]

whatever the correlation between the x_i. Here: noise, then at most one Conv, Gemm or MatMul, then sums. Noise that went
through a non-linearity or a BatchNorm before is not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from .batch_norm import BatchNorm
from .inference import Float64Array
from .marker import is_dropout, marker_label, read_marker
from .noise import UOUT_FORMS, NoiseKind
from .noise_spread import ELEMENTWISE_COPIES, LINEAR_IN_ONE_OPERAND, LINEAR_MAPS
from .second_moment import COPIES, second_moment
from .tensors import Tensor, constant_behind

# One draw for each element: only these average out over the taps of a convolution as the formula says.
ELEMENTWISE = UOUT_FORMS | {NoiseKind.DROPOUT, NoiseKind.GAUSSIAN_DROPOUT}
OTHER_MAPS = ELEMENTWISE_COPIES | LINEAR_MAPS | LINEAR_IN_ONE_OPERAND


@dataclass(frozen=True)
class LinearNoise:
    """What noise adds to a tensor.

    Attributes:
        variance: shape (C,), or () where it is 0.
        sources: the labels of the markers that it comes from; empty where there is none.
        elementwise: whether each element carries a noise of its own.
        obstacle: why it can't be told; empty where it can.
    """

    variance: Float64Array
    sources: frozenset[str] = frozenset()
    elementwise: bool = True
    obstacle: str = ""


NONE = LinearNoise(np.zeros(()))


def linear_noise(tensor: Tensor, batch_norms: Mapping[int, BatchNorm]) -> LinearNoise:
    """What the noise in front adds to the variance of a tensor.

    Args:
        tensor: what a BatchNorm normalises.
        batch_norms: by the id of their node.
    """
    if len(tensor.inputs) != 1:
        return NONE
    node = tensor.inputs[0]
    if is_dropout(node):
        return _behind_marker(node, batch_norms)
    if node.op in COPIES:
        return linear_noise(node.inputs[0], batch_norms)
    if node.op in ("Conv", "Gemm", "MatMul"):
        return _behind_map(node, linear_noise(node.inputs[0], batch_norms))
    if node.op in ("Add", "Sub", "Sum"):
        return _behind_sum([linear_noise(operand, batch_norms) for operand in node.inputs])
    if node.op in OTHER_MAPS:
        arriving = [linear_noise(operand, batch_norms) for operand in node.inputs]
        if any(noise.sources or noise.obstacle for noise in arriving):
            return LinearNoise(np.zeros(()), obstacle=f"no closed form behind {node.op}")
    return NONE


def _behind_marker(node: gs.Node, batch_norms: Mapping[int, BatchNorm]) -> LinearNoise:
    """s2 E[x^2], and (1 + s2) times what other noise in front has added: x is what stands in front of all of it."""
    before = linear_noise(node.inputs[0], batch_norms)
    noise = read_marker(node)
    if noise is None or before.obstacle:
        return before
    label = marker_label(node)
    if before.sources and not before.elementwise:
        return LinearNoise(np.zeros(()), obstacle=f"'{label}' stands behind a linear map of other noise")
    if noise.kind not in ELEMENTWISE:
        return LinearNoise(np.zeros(()), obstacle=f"the elements behind '{label}' share their draws")
    moment = second_moment(node.inputs[0], batch_norms)
    if moment is None:
        return LinearNoise(np.zeros(()), obstacle=f"the second moment in front of '{label}' is not in the file")
    variance = before.variance * (1 + noise.variance) + noise.variance * moment
    return LinearNoise(variance, before.sources | {label}, before.elementwise)


def _behind_map(node: gs.Node, before: LinearNoise) -> LinearNoise:
    """sum_i w_ji^2 v_i over the inputs and the taps."""
    if before.obstacle or not before.sources:
        return before
    weight = constant_behind(node.inputs[1])
    if weight is None:
        return LinearNoise(np.zeros(()), obstacle=f"the weight of {node.op} is computed by the graph")
    if not before.elementwise:
        return LinearNoise(np.zeros(()), obstacle="two linear maps follow each other")
    squares = np.asarray(weight.values, dtype=np.float64) ** 2
    if node.op == "Conv":
        if _border_is_unknown(node):
            return LinearNoise(np.zeros(()), obstacle="how many of its taps lie in the padding is not in the file")
        groups = int(node.attrs.get("group", 1))
        w2 = (squares * _seen(node, squares.shape)).reshape(len(squares), squares.shape[1], -1).sum(axis=2)
        v = before.variance.reshape(groups, -1)  # (groups, C_in / groups)
        variance = np.einsum("goi,gi->go", w2.reshape(groups, -1, w2.shape[1]), v).reshape(-1)
    elif node.op == "Gemm":
        w2 = squares if node.attrs.get("transB", 0) else squares.T  # (out, in)
        variance = float(node.attrs.get("alpha", 1.0)) ** 2 * (w2 @ before.variance)
    else:
        variance = before.variance @ squares
    return LinearNoise(variance, before.sources, elementwise=False)


def _border_is_unknown(node: gs.Node) -> bool:
    """Whether a Conv pads an image whose size, or whose padding, the file does not say."""
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return True
    sizes = list(node.inputs[0].shape or [])[2:]
    return any(node.attrs.get("pads", ())) and not (sizes and all(isinstance(size, int) for size in sizes))


def _seen(node: gs.Node, weight_shape: tuple[int, ...]) -> Float64Array:
    """The share of output positions at which each tap lies inside the image, shape (1, 1, *kernel)."""
    kernel = weight_shape[2:]
    sizes = list(node.inputs[0].shape or [])[2:]
    share = np.ones((1, 1, *kernel))
    pads = node.attrs.get("pads", [0] * 2 * len(kernel))
    strides = node.attrs.get("strides", [1] * len(kernel))
    dilations = node.attrs.get("dilations", [1] * len(kernel))
    for axis, (taps, size) in enumerate(zip(kernel, sizes, strict=False)):
        if not isinstance(size, int):
            continue
        reach = (taps - 1) * dilations[axis] + 1
        starts = np.arange(0, size + pads[axis] + pads[axis + len(kernel)] - reach + 1, strides[axis]) - pads[axis]
        inside = [
            np.mean((starts + k * dilations[axis] >= 0) & (starts + k * dilations[axis] < size)) for k in range(taps)
        ]
        share = share * np.array(inside).reshape([-1 if a == axis + 2 else 1 for a in range(2 + len(kernel))])
    return share


def _behind_sum(operands: list[LinearNoise]) -> LinearNoise:
    """The variances add where no source stands behind two operands."""
    for operand in operands:
        if operand.obstacle:
            return operand
    noisy = [operand for operand in operands if operand.sources]
    if len(frozenset().union(*(operand.sources for operand in noisy))) < sum(len(o.sources) for o in noisy):
        return LinearNoise(np.zeros(()), obstacle="one noise arrives along two ways")
    total: Float64Array = sum((operand.variance for operand in noisy), np.zeros(()))
    sources = frozenset().union(*(operand.sources for operand in noisy))
    return LinearNoise(total, sources, all(operand.elementwise for operand in noisy))
