"""Removes the arithmetic on shapes that an export leaves behind, and the nodes that change no shape.

A batch of any size makes of each shape a computation. Which sides are equal in every run is known all the same:

    Reshape(x, [Shape(x)[0], 4, 96, -1])     Reshape(x, [0, 4, 96, -1])     0 takes the side of x there
    Reshape(x, [n, 512]), n any number       Reshape(x, [-1, 512])          -1 is the remaining side
    Expand(x, [Shape(x)[0], 3, 7])           Expand(x, [1, 3, 7])           1 does not change the side
    ScatterND(x, [0, 1, ..., n - 1], u)      u                              where x has n rows, and u as many

A Reshape of a Reshape reads the first one's input, a Transpose of a Transpose is one; and a node whose output is its
input (Reshape, Expand, Slice, Transpose, Cast, Concat of one tensor) is bypassed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.element_types import ElementTypes, code_of
from vsfix.graph_passes.ir.fold_constants import FoldConstants, ResolveShapes
from vsfix.graph_passes.ir.graph import (
    Tensor,
    is_graph_output,
    is_standard,
    name_of,
    redirect_readers,
    upstream_constant,
)
from vsfix.graph_passes.ir.graph_pass import Change, GraphPass, PassResult
from vsfix.graph_passes.ir.remove_identities import RemoveIdentities
from vsfix.graph_passes.ir.shapes import Dimension, SymbolicShapes

from .split_sequences import SplitSequences

_ROUNDS = 8  # each shows sides to the next; a chain of shapes is rarely more than three deep
_SEEN_BY_SHAPE = frozenset(("Expand", "Slice", "ScatterND", "Cast"))
_SAME_ELEMENTS = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze"))


class SimplifyShapes:
    """Removes nodes of the main graph that only compute shapes or change none; goes after `FoldConstants`."""

    name = "simplify shapes"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place."""
        changed: list[Change] = []
        for _ in range(_ROUNDS):
            found = _round(graph) if any(_is_asked(node) for node in graph.nodes if is_standard(node)) else []
            if not found:
                break
            changed += found
        return PassResult(self.name, tuple(changed))


def _is_asked(node: gs.Node) -> bool:
    """Whether a rule may hold for a node, as far as that can be seen without the shapes."""
    if node.op == "Reshape" and len(node.inputs) > 1:
        return upstream_constant(node.inputs[1]) is None or _producer(node.inputs[0]) in _SAME_ELEMENTS
    if node.op == "Transpose":
        order = list(node.attrs.get("perm", ()))
        return _producer(node.inputs[0]) == "Transpose" or (bool(order) and order == sorted(order))
    return len(node.inputs) == 1 if node.op == "Concat" else node.op in _SEEN_BY_SHAPE


def _producer(tensor: Tensor) -> str:
    """The operator that writes a tensor; empty where none of the standard does."""
    return str(tensor.inputs[0].op) if len(tensor.inputs) == 1 and is_standard(tensor.inputs[0]) else ""


def _round(graph: gs.Graph) -> list[Change]:
    """Applies every rule once to every node, and computes new constants."""
    shapes, types = SymbolicShapes(graph), ElementTypes(graph)
    changed = []
    for node in [node for node in graph.nodes if is_standard(node)]:
        if node.op == "Cast":
            is_same = types.of(node.inputs[0]) == code_of(node.attrs["to"])
            action = _bypass(graph, node, node.inputs[0]) if is_same else None
        else:
            action = _RULES[node.op](graph, node, shapes) if node.op in _RULES else None
        if action is not None:
            changed.append(Change(name_of(node), action))
    if changed:
        graph.cleanup()
        following: list[GraphPass] = [SplitSequences(), RemoveIdentities(), ResolveShapes(), FoldConstants()]
        for graph_pass in following:
            changed += graph_pass(graph).changed
    return changed


def _bypass(graph: gs.Graph, node: gs.Node, source: Tensor) -> str | None:
    """Makes the readers of a node read `source`; an output of the graph is written by an Identity. None: no readers."""
    output = node.outputs[0]
    if is_graph_output(graph, output):
        node.op, node.attrs = "Identity", {}
        node.inputs.clear()
        node.inputs.append(source)
    elif output.outputs:
        redirect_readers(output, source)
    else:
        return None
    return "bypassed: its output is its input"


def _reshape(graph: gs.Graph, node: gs.Node, shapes: SymbolicShapes) -> str | None:
    """Rules for Reshape."""
    target = shapes.elements(node.inputs[1]) if len(node.inputs) > 1 else None
    before = shapes.of(node.inputs[0])
    if target is None or 0 in (before or ()) or (0 in target and node.attrs.get("allowzero", 0)):
        return None
    if before is not None and _is_same(before, target):
        return _bypass(graph, node, node.inputs[0])
    first = node.inputs[0]
    while _producer(first) in _SAME_ELEMENTS:
        first = first.inputs[0].inputs[0]
    if first is not node.inputs[0]:
        sides = tuple(_own_side(before, index) if side == 0 else side for index, side in enumerate(target))
        shape = shapes.of(first)
        if shape is not None and _is_same(shape, sides) and 0 not in shape:
            return _bypass(graph, node, first)
        if (written := _written_target(sides, shape)) is not None:
            return _write_target(node, first, written)
    written = None if upstream_constant(node.inputs[1]) is not None else _written_target(target, before)
    return None if written is None else _write_target(node, node.inputs[0], written)


def _write_target(node: gs.Node, source: Tensor, target: Sequence[int]) -> str:
    """Makes a node read `source`, and reshape or expand it to a constant shape."""
    node.attrs.pop("allowzero", None)
    node.inputs[0] = source
    node.inputs[1] = gs.Constant(f"{node.outputs[0].name}.shape", np.array(target, dtype=np.int64))
    return "its shape is a constant"


def _own_side(shape: Sequence[Dimension] | None, index: int) -> Dimension:
    """A side of a shape, or a symbol where it is unknown."""
    return f"side {index}?" if shape is None or index >= len(shape) else shape[index]


def _is_same(before: Sequence[Dimension], target: Sequence[Dimension]) -> bool:
    """Whether a Reshape to `target` does not change the shape: one side follows from the others."""
    if len(before) != len(target):
        return False
    differs = [side for own, side in zip(before, target, strict=True) if side not in (0, own)]
    return not differs or (len(differs) == 1 and not isinstance(differs[0], int)) or differs == [-1]


def _written_target(target: Sequence[Dimension], before: Sequence[Dimension] | None) -> list[int] | None:
    """A target of constants that means the same, or None."""
    sides = [0 if before is not None and _own_side(before, i) == side else side for i, side in enumerate(target)]
    sides = [side if isinstance(given, str) else given for side, given in zip(sides, target, strict=True)]
    unknown = [index for index, side in enumerate(sides) if isinstance(side, str)]
    if len(unknown) == 1 and -1 not in sides:
        sides[unknown[0]] = -1
        unknown = []
    return None if unknown else [int(side) for side in sides]


def _expand(graph: gs.Graph, node: gs.Node, shapes: SymbolicShapes) -> str | None:
    """Rules for Expand."""
    before, target = shapes.of(node.inputs[0]), shapes.elements(node.inputs[1])
    if before is None or target is None:
        return None
    padded = (*(1,) * (len(target) - len(before)), *before)
    own = padded[len(padded) - len(target) :]
    if len(target) <= len(before) and all(side in (1, mine) for side, mine in zip(target, own, strict=True)):
        return _bypass(graph, node, node.inputs[0])
    sides = [1 if side == mine else side for side, mine in zip(target, own, strict=True)]
    if upstream_constant(node.inputs[1]) is not None or any(isinstance(side, str) for side in sides):
        return None
    return _write_target(node, node.inputs[0], [int(side) for side in sides])


def _slice(graph: gs.Graph, node: gs.Node, shapes: SymbolicShapes) -> str | None:
    """A Slice of everything."""
    given = [upstream_constant(tensor) for tensor in node.inputs[1:]]
    if len(given) < 2 or any(constant is None for constant in given):
        return None
    starts, ends, *rest = [constant.values.reshape(-1) for constant in given if constant is not None]
    axes = rest[0] if rest else np.arange(len(starts))
    steps = rest[1] if len(rest) > 1 else np.ones(len(starts), dtype=np.int64)
    shape = shapes.of(node.inputs[0])
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        side = None if shape is None or axis >= len(shape) else shape[axis]
        is_all = end >= np.iinfo(np.int32).max or (isinstance(side, int) and end >= side)
        if start != 0 or step != 1 or not is_all:
            return None
    return _bypass(graph, node, node.inputs[0])


def _transpose(graph: gs.Graph, node: gs.Node, shapes: SymbolicShapes) -> str | None:
    """A Transpose of a Transpose, and one that does not move the axes."""
    order = list(node.attrs.get("perm", ()))
    if order and order == sorted(order):
        return _bypass(graph, node, node.inputs[0])
    before = node.inputs[0].inputs[0] if len(node.inputs[0].inputs) == 1 else None
    if before is None or before.op != "Transpose" or not is_standard(before):
        return None
    first = list(before.attrs.get("perm", ()))
    if not first or not order:
        return None
    order = [first[axis] for axis in order]
    if order == sorted(order):
        return _bypass(graph, node, before.inputs[0])
    node.attrs["perm"] = order
    node.inputs[0] = before.inputs[0]
    return f"one with {name_of(before)}"


def _concat(graph: gs.Graph, node: gs.Node, shapes: SymbolicShapes) -> str | None:
    """A Concat of one tensor."""
    return _bypass(graph, node, node.inputs[0]) if len(node.inputs) == 1 else None


def _scatter(graph: gs.Graph, node: gs.Node, shapes: SymbolicShapes) -> str | None:
    """A ScatterND that writes every row, in order: as many rows as there are, counted from 0."""
    data, indices, updates = node.inputs[:3]
    if node.attrs.get("reduction", "none") != "none" or len(indices.inputs) != 1 or not shapes.are_equal(data, updates):
        return None
    rows = indices.inputs[0].inputs[0] if indices.inputs[0].op == "Unsqueeze" else None
    shape = shapes.of(indices)
    if rows is None or len(rows.inputs) != 1 or rows.inputs[0].op != "Range" or shape is None or shape[1:] != (1,):
        return None
    first, _, step = [shapes.elements(tensor) for tensor in rows.inputs[0].inputs]
    if first != (0,) or step != (1,):
        return None
    return _bypass(graph, node, updates)


_RULES: dict[str, Callable[[gs.Graph, gs.Node, SymbolicShapes], str | None]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "Slice": _slice,
    "Transpose": _transpose,
    "Concat": _concat,
    "ScatterND": _scatter,
}
