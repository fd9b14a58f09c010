"""Writes BatchNorm that stands in primitives as one BatchNormalization, so that it can be measured and repaired.

    channels on axis 1       BatchNormalization
    channels on the last     Transpose, BatchNormalization, Transpose; where an upstream Transpose undoes the
                             first, both are left out

`primitives` decides what is taken for a BatchNorm. This pass goes before any folding of constants, which would
merge what belongs apart. `LeaveChannelsLast` goes after the fold of BatchNorms: what could not be folded becomes a Mul
and an Add on the last axis again, so that no deployed file moves its data back and forth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm, find_batch_norms
from vsfix.graph_passes.batch_norm.primitives import (
    BatchNormParameter,
    Lookalike,
    PrimitiveBatchNorm,
    find_primitive_batch_norms,
    operand_shape,
)
from vsfix.graph_passes.ir.fold_constants import evaluate_constant
from vsfix.graph_passes.ir.graph import Tensor, is_standard, upstream_constant
from vsfix.graph_passes.ir.graph_pass import Change, PassResult, Skipped
from vsfix.graph_passes.ir.rounding import RoundingError, round_channels
from vsfix.graph_passes.ir.shapes import TensorShapes
from vsfix.graph_passes.ir.stored_values import stored_values
from vsfix.graph_passes.ir.subgraphs import GraphTree

from .affine_batch_norm import AffineBatchNorm
from .candidates import FoldCandidate

_FLOATS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class Layout:
    """The layout of the data: C, the axis of the channels, the number of axes; and the type."""

    channels: int
    axis: int
    rank: int
    dtype: npt.DTypeLike


class RecomposeBatchNorm:
    """Writes each BatchNorm in primitives as a BatchNormalization in inference form."""

    name = "recompose BatchNorm"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place: what is certain is rewritten, what only looks like a BatchNorm is skipped."""
        changed: list[Change] = []
        skipped: list[Skipped] = []
        shapes = TensorShapes(graph)
        found = find_primitive_batch_norms(graph)
        # All are decided before the first is rewritten: shapes can't be inferred on a graph that is half edited.
        decisions = [
            match.reason if isinstance(match, Lookalike) else find_layout(graph, match, shapes) for match in found
        ]
        taken = {tensor.name for node in graph.nodes for tensor in (*node.inputs, *node.outputs)} if found else set()
        for match, decision in zip(found, decisions, strict=True):
            last = match.steps[-1]
            label = str(last.node.name or last.output.name)
            if isinstance(match, Lookalike) or isinstance(decision, str):
                skipped.append(Skipped(label, str(decision)))
            else:
                changed.append(Change(label, write_batch_norm(graph, match, decision, label, taken)))
        if changed:
            graph.cleanup()
        return PassResult(self.name, tuple(changed), tuple(skipped))


def find_layout(graph: gs.Graph, match: PrimitiveBatchNorm, shapes: TensorShapes) -> Layout | str:
    """The layout of the data, or the reason why the match can't be written as a BatchNormalization."""
    if graph.opset < 7:
        return f"the model has opset {graph.opset}; convert it to 7 or newer with onnx.version_converter"
    shape = shapes.of(match.steps[0].data)
    if shape is None:
        return "the number of axes of its input is unknown"
    rank = len(shape)
    if any(len(operand_shape(graph, step) or ()) > rank for step in match.steps):
        return "a constant of it has more axes than its input"
    axes = {
        (len(sides) - axis, side)
        for sides in (operand_shape(graph, step) or () for step in match.steps)
        for axis, side in enumerate(sides)
        if side != 1
    }
    if len(axes) > 1:
        return "its constants do not lie along one axis"
    from_last, channels = axes.pop() if axes else (rank - 1, 1)
    axis = rank - from_last
    if axis not in (1, rank - 1) or rank < 2 or axis < 1:
        return f"its constants lie along axis {axis} of {rank}, which is not that of the channels"
    if shape[axis] != channels:
        return f"its constants have {channels} channels, its input {shape[axis] or 'an unknown number'}"
    values = evaluate_constant(graph, match.steps[0].operand)
    dtype = np.float32 if isinstance(values, str) else values.dtype
    return _number_problem(match, channels, dtype) or Layout(channels, axis, rank, dtype)


def _number_problem(match: PrimitiveBatchNorm, channels: int, dtype: npt.DTypeLike) -> str | None:
    """Why the numbers do not make a BatchNorm, or None."""
    if dtype not in _FLOATS:
        return f"its type {dtype} is not float16, float32 or float64"
    parameters = (match.gamma, match.beta, match.mean, match.variance)
    if any(parameter.values.size not in (1, channels) for parameter in parameters):
        return "its constants are not of the same length"
    with np.errstate(over="ignore"):
        if not all(np.isfinite(parameter.values.astype(dtype)).all() for parameter in parameters):
            return "a constant of it is not finite"
    variance = match.variance.values
    if (variance < 0).any() or (variance + match.epsilon <= 0).any():
        return "its variance is not positive"
    return None


def write_batch_norm(graph: gs.Graph, match: PrimitiveBatchNorm, layout: Layout, label: str, taken: set[str]) -> str:
    """Puts the BatchNormalization in the place of the steps; returns what was done."""
    x, y = match.steps[0].data, match.steps[-1].output
    inputs = [
        _constant(parameter, layout, f"{label}.{kind}", taken)
        for kind, parameter in (
            ("weight", match.gamma),
            ("bias", match.beta),
            ("running_mean", match.mean),
            ("running_var", match.variance),
        )
    ]
    position = next(index for index, node in enumerate(graph.nodes) if node is match.steps[-1].node)
    for step in match.steps:
        step.node.inputs.clear()
        step.node.outputs.clear()
    action = f"{len(match.steps)} nodes made a BatchNormalization"
    nodes: list[gs.Node] = []
    if layout.axis != 1:
        x, y = _transposed(x, y, layout.rank, label, nodes)
        action += " on axis 1, between Transposes"
    batch_norm = gs.Node("BatchNormalization", label, {"epsilon": float(match.epsilon)}, [x, *inputs], [y])
    nodes.insert(len(nodes) - 1 if layout.axis != 1 else 0, batch_norm)
    for node in reversed(nodes):
        graph.nodes.insert(position, node)
    return action + ("; sqrt(var + epsilon) was one constant, so epsilon is 0 now" if match.merged else "")


class LeaveChannelsLast:
    """Makes Mul and Add on the last axis of each BatchNormalization that stands between two Transposes."""

    name = "leave channels last"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place."""
        changed: list[Change] = []
        tree = GraphTree(graph)
        for batch_norm in find_batch_norms(graph):
            around = _around(tree, batch_norm)
            if around is None:
                continue
            try:
                dtype = batch_norm.parameters[0].dtype
                affine = AffineBatchNorm(*(round_channels(row, dtype) for row in (batch_norm.scale, batch_norm.shift)))
            except RoundingError:
                continue
            first, last = around
            y = last.outputs[0]
            last.outputs.clear()
            batch_norm.node.inputs[0], batch_norm.node.outputs[0] = first.inputs[0], y
            affine.apply(tree, FoldCandidate(batch_norm, graph))
            changed.append(Change(batch_norm.name, "a Mul and an Add on the last axis, without Transposes"))
        if changed:
            graph.cleanup()
        return PassResult(self.name, tuple(changed))


def _around(tree: GraphTree, batch_norm: BatchNorm) -> tuple[gs.Node, gs.Node] | None:
    """The Transposes that bring the channels of a BatchNorm to axis 1 and back, where nothing else reads between."""
    x, y = batch_norm.input, batch_norm.output
    if not x.inputs or any(tree.obstacle(tensor, "it") for tensor in (x, y)):
        return None
    first, last = x.inputs[0], y.outputs[0]
    if first.op != "Transpose" or last.op != "Transpose" or not (is_standard(first) and is_standard(last)):
        return None
    forth = list(first.attrs.get("perm", ()))
    rank = len(forth)
    is_moved = forth == [0, rank - 1, *range(1, rank - 1)]
    is_back = list(last.attrs.get("perm", ())) == [0, *range(2, rank), 1]
    return (first, last) if rank > 2 and is_moved and is_back else None


def _transposed(x: Tensor, y: Tensor, rank: int, label: str, nodes: list[gs.Node]) -> tuple[Tensor, Tensor]:
    """The input and the output of a BatchNormalization on axis 1 in the place of one on the last axis."""
    forth, back = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    if len(x.inputs) == 1 and x.inputs[0].op == "Transpose" and list(x.inputs[0].attrs.get("perm", ())) == back:
        x = x.inputs[0].inputs[0]
    else:
        first = gs.Variable(f"{label}.channels_first")
        nodes.append(gs.Node("Transpose", f"{label}.to_channels_first", {"perm": forth}, [x], [first]))
        x = first
    normalised = gs.Variable(f"{label}.normalised")
    nodes.append(gs.Node("Transpose", f"{label}.to_channels_last", {"perm": back}, [normalised], [y]))
    return x, normalised


def _constant(parameter: BatchNormParameter, layout: Layout, name: str, taken: set[str]) -> gs.Constant:
    """A parameter as a constant of shape (C,): the one that the file has, where it fits, else a new one."""
    values = np.broadcast_to(parameter.values, layout.channels).astype(layout.dtype)
    stored = None if parameter.source is None else upstream_constant(parameter.source)
    fits = stored is not None and tuple(stored.shape) == values.shape and stored.dtype == values.dtype
    if stored is not None and fits and np.array_equal(stored_values(stored), values):
        return stored
    while name in taken:
        name += ".own"
    taken.add(name)
    return gs.Constant(name, values)
