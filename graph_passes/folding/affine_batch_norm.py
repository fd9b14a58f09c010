"""Writes a BatchNorm as one product and one sum a channel, its inference: Y = g X + s.

g and s are computed in float64 and have the shape (C, 1, ..., 1), so that they broadcast along the positions of X.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.rounding import RoundingError, round_channels
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.ir.stored_values import stored_values
from vsfix.graph_passes.ir.subgraphs import GraphTree

from .candidates import FoldCandidate
from .channel_map import ChannelMap

_FIRST_BROADCASTING_OPSET = 7


@dataclass(frozen=True, eq=False)
class AffineBatchNorm:
    """g and s, rounded to the type of X and shaped to broadcast against it."""

    scale: Array
    shift: Array

    def apply(self, tree: GraphTree, candidate: FoldCandidate) -> None:
        """Puts Mul and Add in the place of the node."""
        batch_norm, graph = candidate.batch_norm, candidate.graph
        name, x, y = batch_norm.name, batch_norm.input, batch_norm.output
        scale = gs.Constant(tree.unused_name(f"{name}.scale"), self.scale)
        shift = gs.Constant(tree.unused_name(f"{name}.shift"), self.shift)
        product = gs.Variable(tree.unused_name(f"{name}.scaled"), dtype=y.dtype, shape=y.shape)
        mul = gs.Node("Mul", f"{name}.mul", inputs=[x, scale], outputs=[product])
        add = gs.Node("Add", f"{name}.add", inputs=[product, shift])
        tree.insert_after(graph, batch_norm.node, mul)
        tree.insert_after(graph, mul, add)
        tree.take_out(graph, batch_norm.node)
        add.outputs.append(y)


def decide_affine(tree: GraphTree, channel_map: ChannelMap, candidate: FoldCandidate) -> AffineBatchNorm | str:
    """The product and the sum, or the reason why the node stays."""
    batch_norm = candidate.batch_norm
    if tree.root.opset < _FIRST_BROADCASTING_OPSET:
        return f"Mul of opset {tree.root.opset} broadcasts otherwise"
    rank = channel_map.rank(batch_norm.input) or channel_map.rank(batch_norm.output)
    if rank is None:
        return "the number of axes of its input is unknown"
    dtypes = {stored_values(constant).dtype for constant in batch_norm.parameters}
    if len(dtypes) > 1:
        return "its parameters are of different types, so that of its input is uncertain"
    dtype = dtypes.pop()
    try:
        rows = [round_channels(row, dtype) for row in (batch_norm.scale, batch_norm.shift)]
    except RoundingError as error:
        return str(error)
    scale, shift = (np.reshape(row, (-1, *(1 for _ in range(rank - 2)))) for row in rows)  # (C, 1, ..., 1)
    return AffineBatchNorm(scale, shift)
