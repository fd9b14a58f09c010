"""Folds BatchNorm into the Conv or Gemm in front of it.

    Y = gamma (W * x + b - mean) / sqrt(var + epsilon) + beta
      = (g W) * x + (g (b - mean) + beta)          with g = gamma / sqrt(var + epsilon), one value a channel

computed in float64 from the stored values and rounded once, to the dtype of the weight. Conv: W of shape
(C_out, C_in / groups, *kernel) is scaled along its first axis. Gemm, Y = a A B' + c C: B' = (K, C_out), or (C_out, K)
with transB, is scaled along C_out; the sum c C becomes the new C and c becomes 1.

A weight that another node reads too is copied first. A fold whose result would not be finite is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from .batch_norm import BatchNorm, find_batch_norms, stored_values
from .graph_pass import Change, Kept, PassResult
from .inference import Float64Array
from .tensors import Tensor, constant_behind, is_graph_output

FOLDABLE = ("Conv", "Gemm")


@dataclass(frozen=True, eq=False)
class _Match:
    """A BatchNorm, the node that feeds it, and that node's constants (`bias` is None where there is none)."""

    batch_norm: BatchNorm
    producer: gs.Node
    weight: gs.Constant
    bias: gs.Constant | None


class FoldBatchNorm:
    """Folds each BatchNorm whose input is a Conv or Gemm that nothing else reads."""

    name = "fold BatchNorm"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place.

        Raises:
            ModelError: a BatchNorm that can't be read.
        """
        changed: list[Change] = []
        kept: list[Kept] = []
        for batch_norm in find_batch_norms(graph):
            decision = _decide(graph, batch_norm)
            rewritten = _rewrite(graph, decision) if isinstance(decision, _Match) else decision
            if rewritten is None and isinstance(decision, _Match):
                label = decision.producer.name or decision.producer.op
                changed.append(Change(batch_norm.name, f"folded into {decision.producer.op} '{label}'"))
            else:
                kept.append(Kept(batch_norm.name, str(rewritten)))
        if changed:
            graph.cleanup()
        return PassResult(self.name, tuple(changed), tuple(kept))


def _decide(graph: gs.Graph, batch_norm: BatchNorm) -> _Match | str:
    """The match, or the reason why there is none."""
    tensor = batch_norm.input
    if not tensor.inputs:
        return "its input is an input of the graph"
    producer = tensor.inputs[0]
    if producer.op not in FOLDABLE or producer.domain not in (None, "", "ai.onnx"):
        return f"its input comes from {producer.op}, not from {' or '.join(FOLDABLE)}"
    if is_graph_output(graph, tensor):
        return f"the output of {producer.op} in front is an output of the graph"
    if len(tensor.outputs) != 1:
        return f"the output of {producer.op} in front is read {len(tensor.outputs)} times"
    weight = constant_behind(producer.inputs[1])
    if weight is None:
        return f"the weight of {producer.op} is computed by the graph"
    bias: gs.Constant | None = None
    if len(producer.inputs) > 2 and not producer.inputs[2].is_empty():
        bias = constant_behind(producer.inputs[2])
        if bias is None:
            return f"the bias of {producer.op} is computed by the graph"
        if producer.op == "Gemm" and not _is_row(bias, batch_norm.channels):
            return "the bias of Gemm is not one value a channel"
    axis = _channel_axis(producer)
    if weight.shape[axis] != batch_norm.channels:
        return f"the weight of {producer.op} has {weight.shape[axis]} channels, the BatchNorm {batch_norm.channels}"
    return _Match(batch_norm, producer, weight, bias)


def _rewrite(graph: gs.Graph, match: _Match) -> str | None:
    """Folds; returns the reason where the numbers forbid it, and then nothing has changed."""
    batch_norm, producer = match.batch_norm, match.producer
    weight = np.asarray(match.weight.values, dtype=np.float64)
    axis = _channel_axis(producer)
    with np.errstate(all="ignore"):
        g = batch_norm.gamma / np.sqrt(batch_norm.variance + batch_norm.epsilon)  # (C_out,)
        along = [1] * weight.ndim
        along[axis] = -1
        dtype = stored_values(match.weight).dtype
        folded_weight = (weight * g.reshape(along)).astype(dtype)
        folded_bias = (g * (_bias(match) - batch_norm.mean) + batch_norm.beta).astype(
            stored_values(match.weight).dtype
        )  # (C_out,)
    for values in (np.moveaxis(folded_weight, axis, 0), folded_bias):
        bad = ~np.isfinite(values.reshape(batch_norm.channels, -1)).all(axis=1)
        if bad.any():
            return f"channel {int(np.flatnonzero(bad)[0])} would overflow {dtype}"
    output = batch_norm.output
    batch_norm.node.inputs.clear()
    batch_norm.node.outputs.clear()
    producer.outputs[0] = output
    _replace(graph, producer, 1, match.weight, folded_weight, f"{batch_norm.name}.folded_weight")
    _replace(graph, producer, 2, match.bias, folded_bias, f"{batch_norm.name}.folded_bias")
    if producer.op == "Gemm":
        producer.attrs["beta"] = 1.0
    return None


def _bias(match: _Match) -> Float64Array:
    """What the producer adds to each channel, shape (C_out,) or ()."""
    if match.bias is None:
        return np.zeros(())
    bias = np.asarray(match.bias.values, dtype=np.float64).reshape(-1)
    if match.producer.op == "Gemm":
        bias = bias * float(match.producer.attrs.get("beta", 1.0))
    return bias


def _channel_axis(producer: gs.Node) -> int:
    """The axis of the weight along which the output channels lie."""
    return 0 if producer.op == "Conv" or producer.attrs.get("transB", 0) else 1


def _is_row(bias: gs.Constant, channels: int) -> bool:
    """Whether Gemm's C adds the same to every row: shape (), (1,), (C,) or (1, C)."""
    shape = tuple(bias.shape)
    return shape in ((), (1,), (1, 1), (channels,), (1, channels))


def _replace(
    graph: gs.Graph, node: gs.Node, index: int, old: gs.Constant | None, values: Float64Array, name: str
) -> None:
    """Puts `values` at input `index`: into the old constant where only this node reads it, else into a new one."""
    current: Tensor | None = node.inputs[index] if index < len(node.inputs) else None
    if old is not None and current is old and len(old.outputs) == 1 and not is_graph_output(graph, old):
        old.values = values
        return
    fresh = gs.Constant(name, values)
    if current is None:
        node.inputs.append(fresh)
    else:
        node.inputs[index] = fresh
