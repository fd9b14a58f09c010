"""Writes a Split where an export of torch.split and torch.chunk goes through a sequence, which TensorRT does not know.

SplitToSequence(x, 32) -> q;  SequenceAt(q, 0) -> a;  SequenceAt(q, 1) -> b        Split(x, [32, 32]) -> a, b
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.fold_constants import evaluate_constant
from vsfix.graph_passes.ir.graph import is_graph_output, is_standard, name_of
from vsfix.graph_passes.ir.graph_pass import Change, PassResult, Skipped
from vsfix.graph_passes.ir.shapes import SymbolicShapes

_FIRST_SIZES_AS_INPUT = 13


class SplitSequences:
    """Makes a Split of each SplitToSequence of the main graph whose parts are taken out by constant positions."""

    name = "split without sequences"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place."""
        found = [node for node in graph.nodes if node.op == "SplitToSequence" and is_standard(node)]
        if not found:
            return PassResult(self.name)
        shapes = SymbolicShapes(graph)
        decisions = [(node, _decide(graph, node, shapes)) for node in found]
        skipped = [Skipped(name_of(node), sizes) for node, sizes in decisions if isinstance(sizes, str)]
        changed = [
            Change(name_of(node), _write(graph, node, sizes)) for node, sizes in decisions if not isinstance(sizes, str)
        ]
        if changed:
            graph.cleanup()
        return PassResult(self.name, tuple(changed), tuple(skipped))


def _decide(graph: gs.Graph, node: gs.Node, shapes: SymbolicShapes) -> list[int] | str:
    """The sizes of the parts, or the reason why no Split can be written."""
    sequence = node.outputs[0]
    if is_graph_output(graph, sequence) or any(reader.op != "SequenceAt" for reader in sequence.outputs):
        return "its sequence is read as a whole"
    sizes = _sizes(graph, node, shapes)
    if isinstance(sizes, str):
        return sizes
    for reader in sequence.outputs:
        position = evaluate_constant(graph, reader.inputs[1])
        if isinstance(position, str) or not -len(sizes) <= int(position.reshape(())) < len(sizes):
            return "a part of it is taken by an unknown position"
    return sizes


def _sizes(graph: gs.Graph, node: gs.Node, shapes: SymbolicShapes) -> list[int] | str:
    """The sizes of the parts, or the reason why they are unknown."""
    wanted = evaluate_constant(graph, node.inputs[1]) if len(node.inputs) > 1 else None
    if isinstance(wanted, str):
        return "the sizes of its parts are not constant"
    if wanted is None and not node.attrs.get("keepdims", 1):
        return "its parts lose an axis"
    if wanted is not None and wanted.ndim == 1:
        return [int(size) for size in wanted]
    shape, axis = shapes.of(node.inputs[0]), node.attrs.get("axis", 0)
    whole = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    if not isinstance(whole, int):
        return "the side that it splits is unknown"
    size = 1 if wanted is None else int(wanted)
    full = [size] * (whole // size)
    return [*full, whole % size] if whole % size else full


def _write(graph: gs.Graph, node: gs.Node, sizes: list[int]) -> str:
    """Replaces the SplitToSequence by the Split; the readers of a part read an output of it."""
    sequence = node.outputs[0]
    parts = [gs.Variable(f"{sequence.name}.{index}") for index in range(len(sizes))]
    for reader in list(sequence.outputs):
        position = evaluate_constant(graph, reader.inputs[1])
        part = parts[int(np.asarray(position).reshape(()))]
        reader.op, reader.attrs = "Identity", {}
        reader.inputs.clear()
        reader.inputs.append(part)
    data = node.inputs[0]
    node.op, node.attrs = "Split", {"axis": node.attrs.get("axis", 0)}
    node.inputs.clear()
    node.inputs.append(data)
    if graph.opset < _FIRST_SIZES_AS_INPUT:
        node.attrs["split"] = sizes
    else:
        node.inputs.append(gs.Constant(f"{sequence.name}.sizes", np.array(sizes, dtype=np.int64)))
    node.outputs.clear()
    node.outputs.extend(parts)
    return f"a Split into {len(sizes)}"
