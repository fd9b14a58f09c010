"""Folds a scale and a shift of each channel, a Mul and an Add with constants, into the upstream linear layer.

    y = ((x - m) * k) + c        is a BatchNorm with gamma k, beta c, mean m, variance 1 and epsilon 0

Frozen BatchNorms are written like that (torchvision's FrozenBatchNorm2d), and those whose variance was merged into
their scale. Each such chain is written as that BatchNorm, and `FoldBatchNorm` decides and folds. What it can't fold is
skipped: a copy of the graph shows that beforehand.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.primitives import BatchNormParameter, PrimitiveBatchNorm, is_row, operand_shape
from vsfix.graph_passes.ir.constant_expression import Chain, constant_tensors, elementwise_chains, values_of
from vsfix.graph_passes.ir.graph_pass import PassResult
from vsfix.graph_passes.ir.shapes import TensorShapes

from .fold_batch_norm import FoldBatchNorm
from .recompose_batch_norm import find_layout, write_batch_norm

_LAYERS = frozenset("Conv ConvTranspose Gemm MatMul Transpose".split())  # Transpose: of data that lies channels last
_ONE = BatchNormParameter(np.ones(1))


class FoldAffine:
    """Folds each chain of per-channel scales and shifts directly downstream of a linear layer.

    Args:
        fold: how BatchNorms are folded.
    """

    name = "fold scale and shift"

    def __init__(self, fold: FoldBatchNorm) -> None:
        self._fold = fold

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place; what can't be folded is unchanged."""
        chosen: set[str] | None = None
        while _found(graph) if chosen is None else chosen:
            trial = graph.copy()
            written = _write(trial, chosen)
            if not written:
                break
            folded = {change.subject for change in self._fold(trial).changed} & written
            if folded == written:
                _write(graph, folded)
                result = self._fold(graph)
                return PassResult(self.name, tuple(change for change in result.changed if change.subject in folded))
            chosen = folded
        return PassResult(self.name)


def _found(graph: gs.Graph) -> list[PrimitiveBatchNorm]:
    """Every chain that scales what a linear layer gives."""
    chains = elementwise_chains(graph, constant_tensors(graph))
    return [match for chain in chains if (match := _match(graph, chain))]


def _write(graph: gs.Graph, chosen: Collection[str] | None) -> set[str]:
    """Writes the chains as BatchNorms, all of them or those with the names chosen; returns the names."""
    taken = {tensor.name for node in graph.nodes for tensor in (*node.inputs, *node.outputs)}
    shapes = TensorShapes(graph)
    found = _found(graph)
    layouts = [find_layout(graph, match, shapes) for match in found]
    names: set[str] = set()
    for match, layout in zip(found, layouts, strict=True):
        label = f"{match.steps[-1].output.name}.scale_and_shift"
        if isinstance(layout, str) or (chosen is not None and label not in chosen):
            continue
        write_batch_norm(graph, match, layout, label, taken)
        names.add(label)
    if names:
        graph.cleanup()
    return names


def _match(graph: gs.Graph, chain: Chain) -> PrimitiveBatchNorm | None:
    """The longest beginning of a chain that is one product and one sum of each channel; None where nothing scales."""
    producers = chain[0].data.inputs
    if len(producers) != 1 or producers[0].op not in _LAYERS:
        return None
    scale, shift, end = np.ones(1), np.zeros(1), 0
    axes: set[int] = set()  # counted from the last
    for step in chain:
        sides = operand_shape(graph, step) or ()
        if not is_row(graph, step) or len(axes | _axes(sides)) > 1:
            break
        axes |= _axes(sides)
        values = values_of(graph, step.operand).astype(np.float64).reshape(-1)
        if step.shifts:
            shift = shift + step.sign * values
        else:
            factor = values if step.sign > 0 else 1 / values
            scale, shift = scale * factor, shift * factor
        end += 1
    if all(step.shifts for step in chain[:end]):
        return None
    gamma, beta = BatchNormParameter(scale), BatchNormParameter(shift)
    return PrimitiveBatchNorm(chain[:end], gamma, beta, BatchNormParameter(np.zeros(1)), _ONE, 0.0, merged=False)


def _axes(sides: tuple[int, ...]) -> set[int]:
    """The axis along which a constant has several values, counted from the last."""
    return {len(sides) - axis for axis, side in enumerate(sides) if side != 1}
