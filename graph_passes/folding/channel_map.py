"""The channels of a tensor through Reshape, Flatten, Transpose, Squeeze and Unsqueeze.

The nodes are carried out on a tensor that holds, at each position, the number of its channel. Axes of unknown length
get prime lengths that divide nothing else around, so that they can't be mixed with another axis unnoticed: what
keeps the channels apart for these lengths does so for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import Tensor, upstream_constant
from vsfix.graph_passes.ir.shapes import Dimension, SymbolicShapes

VIEWS = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"})
Channels = npt.NDArray[np.int32]
_MAX_ELEMENTS = 2**25


class ChannelMap:
    """The channels of the tensors of a graph.

    Args:
        graph: not changed. Its shapes are inferred once, when the first one is needed.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._shapes: SymbolicShapes | None = None

    def follow(self, tensor: Tensor, axis: int, channels: int, views: Sequence[gs.Node], target: int) -> Channels | str:
        """For each position along axis `target` downstream of the views, the channel of `tensor` that arrives there.

        Args:
            tensor: the input of the first view.
            axis: the axis of `tensor` that holds the channels.
            channels: their number.
            views: nodes of `VIEWS`, in order.
            target: an axis of the output of the last view.

        Returns:
            The channels, or the reason why they are unknown, or do not lie along one axis.
        """
        if not views and axis == target:
            return np.arange(channels, dtype=np.int32)
        shape = self._shape(tensor)
        if shape is None:
            return f"the shape of '{tensor.name}' is unknown"
        shape = tuple(channels if position == axis % len(shape) else side for position, side in enumerate(shape))
        lengths = _lengths(shape, views)
        sides = [side if isinstance(side, int) else lengths[side] for side in shape]
        if np.prod(sides, dtype=np.float64) > _MAX_ELEMENTS:
            return f"'{tensor.name}' is too large for its channels to be followed"
        sizes = [-1 if position == axis % len(shape) else 1 for position in range(len(shape))]
        array = np.broadcast_to(np.arange(channels, dtype=np.int32).reshape(sizes), sides)
        for view in views:
            try:
                array = self._view(view, array, lengths)
            except ValueError as error:
                return f"its channels can't be followed through {view.op} ({error})"
        return _along(array, target, [view.op for view in views])

    def rank(self, tensor: Tensor) -> int | None:
        """The number of axes of a tensor, None where it is unknown."""
        shape = self._shape(tensor)
        return None if shape is None else len(shape)

    def _shape(self, tensor: Tensor) -> tuple[Dimension, ...] | None:
        """The dimensions of a tensor; unknown ones are symbols of their own."""
        stated = tensor.shape
        if isinstance(stated, (list, tuple)) and all(isinstance(side, (int, str)) and side != "" for side in stated):
            return tuple(stated)
        if self._shapes is None:
            self._shapes = SymbolicShapes(self._graph)
        return self._shapes.of(tensor)

    def _view(self, node: gs.Node, array: Channels, lengths: dict[str, int]) -> Channels:
        """The channels downstream of a node.

        Raises:
            ValueError: they are unknown.
        """
        if node.op == "Reshape":
            return array.reshape(self._target(node, array, lengths))
        if node.op == "Flatten":
            axis = int(node.attrs.get("axis", 1)) % (array.ndim + 1)
            return array.reshape(int(np.prod(array.shape[:axis])), -1)
        if node.op == "Transpose":
            return array.transpose(node.attrs.get("perm"))
        if node.op == "Identity":
            return array
        axes = _axes(node)
        if node.op == "Unsqueeze":
            return np.expand_dims(array, tuple(axes or ()))
        if axes is None and lengths:
            raise ValueError("it names no axes, and not every length is known")
        return np.squeeze(array, None if axes is None else tuple(axes))

    def _target(self, node: gs.Node, array: Channels, lengths: dict[str, int]) -> list[int]:
        """The shape that a Reshape makes."""
        constant = upstream_constant(node.inputs[1])
        if constant is not None:
            sides = [int(side) for side in np.reshape(constant.values, -1)]
            copies = not node.attrs.get("allowzero", 0)
            return [array.shape[i] if copies and side == 0 and i < array.ndim else side for i, side in enumerate(sides)]
        shape = self._shape(node.outputs[0])
        if shape is None:
            raise ValueError("its shape is computed by the graph")
        sides = [side if isinstance(side, int) else lengths.get(side, -1) for side in shape]
        if sides.count(-1) > 1:
            raise ValueError("its shape is computed by the graph")
        return sides


def by_channel(values: npt.NDArray[np.float64], channels: Channels, length: int) -> npt.NDArray[np.float64] | None:
    """The values by channel, shape (length,), where values[i] belongs to channels[i]; None where they contradict."""
    result = np.zeros(length)
    result[channels] = values
    return result if np.array_equal(result[channels], values, equal_nan=True) else None


def _along(array: Channels, axis: int, views: list[str]) -> Channels | str:
    """The channels along an axis, or the reason why they differ along another one too."""
    through = f"{', '.join(views)} in between mixes" if views else "BatchNormalization normalises axis 1, which mixes"
    if not -array.ndim <= axis < array.ndim:
        return f"there is no axis {axis} downstream of {', '.join(views)}"
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    if not (rows == rows[:, :1]).all():
        return f"{through} the channels with other axes"
    return np.asarray(rows[:, 0])


def _axes(node: gs.Node) -> list[int] | None:
    """The axes that Squeeze and Unsqueeze name.

    Raises:
        ValueError: they are computed by the graph.
    """
    if "axes" in node.attrs:
        return [int(axis) for axis in node.attrs["axes"]]
    if len(node.inputs) < 2 or node.inputs[1].is_empty():
        return None
    constant = upstream_constant(node.inputs[1])
    if constant is None:
        raise ValueError("its axes are computed by the graph")
    return [int(axis) for axis in np.reshape(constant.values, -1)]


def _lengths(shape: tuple[Dimension, ...], views: Sequence[gs.Node]) -> dict[str, int]:
    """A prime for each symbol, that divides neither a length nor a number in the shapes of the views."""
    numbers = [side for side in shape if isinstance(side, int)]
    for view in views:
        constant = upstream_constant(view.inputs[1]) if view.op == "Reshape" else None
        numbers += [] if constant is None else [int(side) for side in np.reshape(constant.values, -1) if side > 0]
    primes = _primes(numbers)
    return {side: next(primes) for side in dict.fromkeys(side for side in shape if isinstance(side, str))}


def _primes(numbers: Sequence[int]) -> Iterator[int]:
    """Primes from 3 on that divide none of the numbers."""
    for number in count(3, 2):
        if all(number % d for d in range(3, number, 2)) and all(n % number for n in numbers):
            yield number
