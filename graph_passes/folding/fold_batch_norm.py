"""Folds BatchNorm into the linear layers around it, in float64, with one rounding to the type of the weight.

    into the upstream layer      Conv, ConvTranspose, Gemm, MatMul, each with its bias: `backward`
    into the upstream layers     that a Concat joins, each its own channels: `concat`
    into the downstream layer    where nothing is padded or the shift is 0: `forward`

Others (downstream of a residual sum, a non-linearity, or a Concat of what others read too) stay a BatchNormalization,
which a runtime carries out as one scale; `residual="affine"` writes it as a Mul and an Add instead, for one that has no
such operator.

A weight that another node reads too is copied. A fold whose result would not be finite is refused, and every
BatchNorm that is skipped says why.
"""

from __future__ import annotations

from typing import Literal

import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph_pass import Change, PassResult, Skipped
from vsfix.graph_passes.ir.subgraphs import GraphTree

from .affine_batch_norm import decide_affine
from .backward import decide_backward
from .candidates import FoldCandidate, find_fold_candidates
from .channel_map import ChannelMap
from .concat import decide_concat
from .forward import decide_forward

Residual = Literal["keep", "affine"]
_QUANTIZED = "the downstream layer will be quantised, and its weight would take the gains into its input channels"


class FoldBatchNorm:
    """Folds each BatchNorm whose producer or consumers are linear layers that nothing else reads.

    Args:
        residual: what becomes of the others: "keep" leaves them, "affine" writes Y = g X + s as Mul and Add.
        forward: whether to fold into the downstream layer too. Not for a graph that will be quantised: there the gains
            of a BatchNorm go into the input channels of a weight, which a scale for each output channel can't hold.
    """

    name = "fold BatchNorm"

    def __init__(self, residual: Residual = "keep", *, forward: bool = True) -> None:
        self._residual = residual
        self._forward = forward

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` and the subgraphs in it in place."""
        tree, channel_map = GraphTree(graph), ChannelMap(graph)
        candidates, unreadable = find_fold_candidates(tree)
        changed: list[Change] = []
        skipped = list(unreadable)
        for candidate in candidates:
            done = _fold(tree, channel_map, candidate, forward=self._forward)
            if isinstance(done, Skipped) and self._residual == "affine":
                done = _write_affine(tree, channel_map, candidate, done)
            if isinstance(done, Skipped):
                skipped.append(done)
            else:
                changed.append(done)
        if changed:
            graph.cleanup()
        return PassResult(self.name, tuple(changed), tuple(skipped))


def _fold(tree: GraphTree, channel_map: ChannelMap, candidate: FoldCandidate, *, forward: bool) -> Change | Skipped:
    """Folds one BatchNorm, into the upstream layer if that can be done, else into the downstream one."""
    name = candidate.batch_norm.name
    backward = decide_concat(tree, channel_map, candidate) or decide_backward(tree, channel_map, candidate)
    if not isinstance(backward, str):
        return Change(name, backward.apply(tree, candidate))
    forward_fold = decide_forward(tree, channel_map, candidate) if forward else _QUANTIZED
    if not isinstance(forward_fold, str):
        return Change(name, forward_fold.apply(tree, candidate))
    return Skipped(name, backward if backward == forward_fold else f"{backward}; {forward_fold}")


def _write_affine(
    tree: GraphTree, channel_map: ChannelMap, candidate: FoldCandidate, skipped: Skipped
) -> Change | Skipped:
    """Writes one BatchNorm that can't be folded as Mul and Add."""
    affine = decide_affine(tree, channel_map, candidate)
    if isinstance(affine, str):
        return Skipped(skipped.subject, f"{skipped.reason}; not written as Mul and Add: {affine}")
    affine.apply(tree, candidate)
    return Change(skipped.subject, f"written as Mul and Add, since {skipped.reason}")
