"""Emulation of a graph in a narrow float type, as a float32 graph that any runtime runs.

Hardware multiplies numbers of a narrow type and sums in float32; digits are lost where a weight or an activation is
stored. So: the same graph in float32, with the rounded weights, and downstream of each tensor that was of the narrow
type a Cast to that type and back. Where a wider tensor enters the narrow part, its Cast stays: who reads it in the wide
part sees all of its digits.

Runtimes on the CPU do something else. They have no bfloat16 convolution; float16 they compute in float32 and leave
out the Casts between two operators, so that an activation past 65504, infinite on a GPU, goes through unseen.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.ir.element_types import FLOAT, ElementTypes
from vsfix.graph_passes.ir.graph import Tensor, graphs_of, is_graph_output, name_of, nodes_of, redirect_readers

from .precision import CastPrecision


def emulate(model: onnx.ModelProto, code: int) -> onnx.ModelProto:
    """A float32 model that computes what a model in a narrow type does.

    Args:
        model: a model that `CastPrecision` cast; not changed.
        code: the narrow type, as a code of onnx.TensorProto.

    Raises:
        ModelError: an operator that can't be cast back.
    """
    graph = import_graph(model)
    narrow, borders = _narrow_tensors(graph, code)
    CastPrecision("fp32", borders)(graph)
    wide = ElementTypes(graph)
    replaced: dict[int, Tensor] = {}
    for inner in list(graphs_of(graph)):
        nodes: list[gs.Node] = []
        for node in inner.nodes:
            nodes.append(node)
            for tensor in node.outputs:
                # An output of the graph keeps its name and its type.
                if tensor.name in narrow and wide.of(tensor) == FLOAT and not is_graph_output(graph, tensor):
                    pair, replaced[id(tensor)] = _rounding(tensor, code)
                    nodes += pair
        inner.nodes.clear()
        inner.nodes.extend(nodes)
    for inner in graphs_of(graph):
        inner.outputs = [replaced.get(id(tensor), tensor) for tensor in inner.outputs]
    return export_model(graph, model)


def _narrow_tensors(graph: gs.Graph, code: int) -> tuple[set[str], set[str]]:
    """The names of the tensors that nodes write in a type, and of the Casts of wider tensors to it."""
    types = ElementTypes(graph)
    written = [tensor for node in nodes_of(graph) for tensor in node.outputs]
    casts = [node for node in graph.nodes if node.op == "Cast" and types.of(node.outputs[0]) == code]
    return (
        {tensor.name for tensor in written if types.of(tensor) == code},
        {name_of(node) for node in casts if types.float_of(node.inputs[0]) not in (None, code)},
    )


def _rounding(tensor: Tensor, code: int) -> tuple[list[gs.Node], gs.Variable]:
    """A Cast to a type and one back, upstream of all readers of a tensor, and their output."""
    narrow = gs.Variable(f"{tensor.name}.narrow", dtype=None)
    rounded = gs.Variable(f"{tensor.name}.rounded", dtype=np.dtype(np.float32))
    redirect_readers(tensor, rounded)
    there = gs.Node("Cast", f"{tensor.name}.narrow", {"to": code}, [tensor], [narrow])
    return [there, gs.Node("Cast", f"{tensor.name}.rounded", {"to": FLOAT}, [narrow], [rounded])], rounded
