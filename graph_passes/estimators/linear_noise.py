"""The variance that noise adds to a tensor through linear maps, from the graph alone.

Downstream of independent noise, X_j = sum_i w_ji n_i x_i with E n = 1 and Var n = s2 has

    Var_train[X_j] - Var_test[X_j] = s2 sum_i w_ji^2 E[x_i^2]

whatever the correlation between the x_i. Here: noise, then at most one Conv, Gemm or MatMul that contracts the
channels, then sums of tensors with different noise. Noise through a non-linearity or a BatchNorm is not seen; noise
that arrives along two paths, whatever the second one is, has no closed form here: the two parts are correlated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.ir.graph import Tensor, upstream_constant
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.ir.shapes import TensorShapes
from vsfix.graph_passes.noise.marker import is_dropout, marker_label, read_marker
from vsfix.graph_passes.noise.noise import UOUT_KINDS, NoiseKind
from vsfix.graph_passes.noise.propagation import (
    ELEMENTWISE_COPIES,
    LINEAR_IN_ONE_OPERAND,
    LINEAR_MAPS,
    NOWHERE,
    NoisePropagation,
)

from .second_moment import COPIES, second_moment

# One draw for each element: only these average out over the taps of a convolution as the formula says.
ELEMENTWISE = UOUT_KINDS | {NoiseKind.DROPOUT, NoiseKind.GAUSSIAN_DROPOUT}
OTHER_MAPS = ELEMENTWISE_COPIES | LINEAR_MAPS | LINEAR_IN_ONE_OPERAND


@dataclass(frozen=True)
class LinearNoise:
    """The variance that noise adds to a tensor.

    Attributes:
        variance: of each channel, those of axis 1, shape (C,), or () where it is 0.
        sources: the labels of the markers that it comes from; empty where there is none.
        elementwise: whether each element carries a noise of its own.
        obstacle: why it is unknown; empty where it is known.
    """

    variance: Float64Array
    sources: frozenset[str] = frozenset()
    elementwise: bool = True
    obstacle: str = ""


NONE = LinearNoise(np.zeros(()))


class LinearNoiseReader:
    """The noise of the tensors of one graph.

    Args:
        graph: with its markers; not changed while this is in use.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._batch_norms = {id(batch_norm.node): batch_norm for batch_norm in find_batch_norms(graph)}
        self._states = NoisePropagation(graph).states
        self._shapes = TensorShapes(graph)
        self._found: dict[int, LinearNoise] = {}

    def of(self, tensor: Tensor) -> LinearNoise:
        """The variance that the noise upstream adds to a tensor."""
        if id(tensor) not in self._found:
            self._found[id(tensor)] = self._read(tensor)
        return self._found[id(tensor)]

    def _read(self, tensor: Tensor) -> LinearNoise:
        """The variance that the noise upstream adds to a tensor, computed anew."""
        if len(tensor.inputs) != 1 or id(tensor) not in self._states:
            return NONE
        node = tensor.inputs[0]
        if is_dropout(node):
            return self._downstream_of_marker(node)
        if node.op in COPIES:
            return self.of(node.inputs[0])
        if node.op in ("Conv", "Gemm", "MatMul"):
            return self._downstream_of_map(node, self.of(node.inputs[0]))
        if node.op in ("Add", "Sub", "Sum"):
            return self._downstream_of_sum(node)
        if node.op in OTHER_MAPS:
            arriving = [self.of(operand) for operand in node.inputs]
            if any(noise.sources or noise.obstacle for noise in arriving):
                return _unknown(f"no closed form downstream of {node.op}")
        return NONE

    def _downstream_of_marker(self, node: gs.Node) -> LinearNoise:
        """s2 E[x^2], and (1 + s2) times the variance that other noise has added: x is upstream of all of it."""
        before = self.of(node.inputs[0])
        noise = read_marker(node)
        if noise is None or before.obstacle:
            return before
        label = marker_label(node)
        if before.sources and not before.elementwise:
            return _unknown(f"'{label}' stands downstream of a linear map of other noise")
        if noise.kind not in ELEMENTWISE:
            return _unknown(f"the elements that '{label}' multiplies share their draws")
        moment = second_moment(node.inputs[0], self._batch_norms)
        if moment is None:
            return _unknown(f"the second moment upstream of '{label}' is not in the file")
        variance = before.variance * (1 + noise.variance) + noise.variance * moment
        return LinearNoise(variance, before.sources | {label}, before.elementwise)

    def _downstream_of_map(self, node: gs.Node, before: LinearNoise) -> LinearNoise:
        """sum_i w_ji^2 v_i over the inputs and the taps."""
        if any(id(operand) in self._states for operand in node.inputs[1:]):
            return _unknown(f"noise reaches more than one operand of {node.op}")
        if before.obstacle or not before.sources:
            return before
        weight = upstream_constant(node.inputs[1])
        if weight is None:
            return _unknown(f"the weight of {node.op} is computed by the graph")
        if not before.elementwise:
            return _unknown("two linear maps follow each other")
        squares = np.asarray(weight.values, dtype=np.float64) ** 2
        obstacle = _border(node) if node.op == "Conv" else self._contracted(node, squares.ndim)
        if obstacle:
            return _unknown(obstacle)
        if node.op == "Conv":
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

    def _contracted(self, node: gs.Node, weight_axes: int) -> str:
        """Why a product does not contract the channels, which lie on axis 1; empty where it does."""
        if node.attrs.get("transA", 0):
            return "Gemm with transA contracts the samples, not the channels"
        shape = self._shapes.of(node.inputs[0])
        if shape is None:
            return f"how many axes {node.op} contracts one of is not in the file"
        if len(shape) != 2 or weight_axes != 2:
            return f"{node.op} contracts another axis than the channels"
        return ""

    def _downstream_of_sum(self, node: gs.Node) -> LinearNoise:
        """The variances add where no source that one operand carries reaches another one, by whatever path."""
        operands = [self.of(operand) for operand in node.inputs]
        for operand in operands:
            if operand.obstacle:
                return operand
        noisy = [number for number, operand in enumerate(operands) if operand.sources]
        if not noisy:
            return NONE
        if self._share_a_source(node.inputs, noisy):
            return _unknown("one noise arrives along two paths")
        shape = self._shapes.of(node.outputs[0])
        sides = [self._shapes.of(node.inputs[number]) for number in noisy]
        if shape is None or any(own is None or len(own) != len(shape) for own in sides):
            return _unknown(f"the channels of the operands of {node.op} may lie along different axes")
        total: Float64Array = sum((operands[number].variance for number in noisy), np.zeros(()))
        # An operand that is repeated along an axis has one draw for several elements.
        own_draws = all(operands[number].elementwise for number in noisy) and all(own == shape for own in sides)
        return LinearNoise(total, frozenset().union(*(operands[number].sources for number in noisy)), own_draws)

    def _share_a_source(self, operands: Sequence[Tensor], noisy: Sequence[int]) -> bool:
        """Whether a source that the variance of one operand holds reaches another operand too."""
        states = [self._states.get(id(operand), NOWHERE) for operand in operands]
        return any(
            (states[number][0] | states[number][1]) & (direct | linear | downstream)
            for number in noisy
            for other, (direct, linear, downstream) in enumerate(states)
            if other != number
        )


def _unknown(obstacle: str) -> LinearNoise:
    """Noise whose variance is unknown."""
    return LinearNoise(np.zeros(()), obstacle=obstacle)


def _border(node: gs.Node) -> str:
    """Why the share of taps in the padding of a Conv is unknown; empty where it is known."""
    unknown = "how many of its taps lie in the padding is not in the file"
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return unknown
    sizes = list(node.inputs[0].shape or [])[2:]
    known = bool(sizes) and all(isinstance(size, int) for size in sizes)
    return unknown if any(node.attrs.get("pads", ())) and not known else ""


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
