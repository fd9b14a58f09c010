"""Folds a BatchNorm downstream of a Concat of channels into the layers that the Concat joins.

    Y = g concat(X_1, ..., X_k) + s = concat(g_1 X_1 + s_1, ..., g_k X_k + s_k)

Each part must have a layer of its own that takes its share; where one has none the BatchNorm stays whole, since one
scale downstream of the Concat is less work than several upstream of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph import is_standard
from vsfix.graph_passes.ir.subgraphs import GraphTree

from .backward import BackwardFold, UpstreamLayer, find_upstream_layer, fold_into
from .candidates import FoldCandidate
from .channel_map import ChannelMap


@dataclass(frozen=True, eq=False)
class ConcatFold:
    """A fold that may be done: one for each part."""

    concat: gs.Node
    parts: list[BackwardFold]

    def apply(self, tree: GraphTree, candidate: FoldCandidate) -> str:
        """Applies the fold; returns the action for the report."""
        batch_norm, output = candidate.batch_norm, candidate.batch_norm.output
        tree.take_out(candidate.graph, batch_norm.node)
        labels = [
            part.write(tree, candidate.graph, f"{batch_norm.name}.{index}") for index, part in enumerate(self.parts)
        ]
        self.concat.outputs[0] = output
        return f"folded through Concat into {', '.join(labels)}"


def decide_concat(tree: GraphTree, channel_map: ChannelMap, candidate: FoldCandidate) -> ConcatFold | str | None:
    """The fold through the upstream Concat, the reason why there is none, or None where no Concat is upstream."""
    tensor = candidate.batch_norm.input
    concat = tensor.inputs[0] if tensor.inputs else None
    if concat is None or concat.op != "Concat" or not is_standard(concat):
        return None
    obstacle = tree.obstacle(tensor, "the output of the upstream Concat")
    if obstacle is not None:
        return obstacle
    rank = channel_map.rank(tensor)
    axis = int(concat.attrs.get("axis", 1))
    if axis != 1 and (rank is None or axis % rank != 1):
        return f"the upstream Concat joins axis {axis}, not the channels"
    layers: list[UpstreamLayer] = []
    for index, part in enumerate(concat.inputs):
        layer = find_upstream_layer(tree, channel_map, candidate.graph, part)
        if isinstance(layer, str):
            return f"part {index} of the upstream Concat can't take its share: {layer}"
        layers.append(layer)
    return _share(candidate, concat, layers)


def _share(candidate: FoldCandidate, concat: gs.Node, layers: list[UpstreamLayer]) -> ConcatFold | str:
    """Each layer with the rows of its own channels."""
    batch_norm = candidate.batch_norm
    ends = np.cumsum([len(layer.channels) for layer in layers])
    if ends[-1] != batch_norm.channels:
        return f"the upstream Concat has {ends[-1]} channels, the BatchNorm {batch_norm.channels}"
    folds = []
    for layer, end in zip(layers, ends, strict=True):
        own = slice(end - len(layer.channels), end)
        fold = fold_into(layer, batch_norm.scale[own], batch_norm.mean[own], batch_norm.beta[own])
        if isinstance(fold, str):
            return f"in {layer.layer.node.op} upstream of the Concat, {fold}"
        folds.append(fold)
    return ConcatFold(concat, folds)
