"""Nodes that compute the moments of a tensor inside the runtime, sample by sample, next to what else it computes.

    r = Reshape(x, (N, C, S))     m = mean of r over S     M = mean of (r - m)^2 over S, times S

A sample's own values are centred before they are squared, so that float32 is enough there; what is summed over samples
is summed in float64 by `moments`. Only (N, C) numbers leave the runtime, not the activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import Tensor
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.statistics.moments import SampleMoments

REDUCE_AXES_ARE_AN_INPUT = 18  # the opset


@dataclass(frozen=True, eq=False)
class MomentTap:
    """The nodes that measure one tensor.

    Attributes:
        nodes: to be run behind whatever computes the tensor.
        outputs: the mean, (N, C, 1), the mean square of the centred values, (N, C), and the shape (N, C, S).
    """

    nodes: tuple[gs.Node, ...]
    outputs: tuple[gs.Variable, gs.Variable, gs.Variable]

    def read(self, arrays: Mapping[str, Array]) -> SampleMoments:
        """The moments from the arrays that the runtime returned.

        Raises:
            DataError: no values, or a value that is not finite.
        """
        mean, square, shape = (arrays[output.name] for output in self.outputs)
        positions = int(shape[2])
        return SampleMoments(positions, mean[:, :, 0].astype(np.float64), square.astype(np.float64) * positions)


def tap_moments(tensor: Tensor, opset: int) -> MomentTap:
    """Makes the nodes that measure `tensor`, shape (N, C) or (N, C, *positions).

    Args:
        tensor: what is measured; its readers are not changed.
        opset: of the graph that the nodes will stand in.
    """
    name = f"{tensor.name}#vsfix"
    kind = np.float64 if tensor.dtype == np.float64 else np.float32
    rows, centred, squared = (gs.Variable(f"{name}.{part}") for part in ("rows", "centred", "squared"))
    mean, square = (gs.Variable(f"{name}.{part}", dtype=kind) for part in ("mean", "square"))
    shape = gs.Variable(f"{name}.shape", dtype=np.int64)
    by_channel = gs.Constant(f"{name}.by_channel", np.array([0, 0, -1]))
    nodes = [
        gs.Node("Reshape", inputs=[tensor, by_channel], outputs=[rows]),
        gs.Node("Shape", inputs=[rows], outputs=[shape]),
        reduce_mean(rows, mean, 2, opset, keep=True),
        gs.Node("Sub", inputs=[rows, mean], outputs=[centred]),
        gs.Node("Mul", inputs=[centred, centred], outputs=[squared]),
        reduce_mean(squared, square, 2, opset, keep=False),
    ]
    if tensor.dtype is None or np.dtype(tensor.dtype) != kind:  # numpy finds float64 and None equal
        cast = gs.Variable(f"{name}.cast")
        nodes.insert(0, gs.Node("Cast", attrs={"to": kind}, inputs=[tensor], outputs=[cast]))
        nodes[1].inputs[0] = cast
    return MomentTap(tuple(nodes), (mean, square, shape))


def reduce_mean(data: gs.Variable, output: gs.Variable, axis: int, opset: int, *, keep: bool) -> gs.Node:
    """ReduceMean over one axis, in the form of the opset."""
    if opset >= REDUCE_AXES_ARE_AN_INPUT:
        axes = gs.Constant(f"{output.name}.axes", np.array([axis]))
        return gs.Node("ReduceMean", attrs={"keepdims": int(keep)}, inputs=[data, axes], outputs=[output])
    return gs.Node("ReduceMean", attrs={"keepdims": int(keep), "axes": [axis]}, inputs=[data], outputs=[output])
