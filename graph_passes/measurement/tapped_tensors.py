"""The tensors inside a graph, and a model that gives them out."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.ir.element_types import ElementTypes
from vsfix.graph_passes.ir.graph import name_of


@dataclass(frozen=True)
class InnerTensor:
    """A float tensor that a node of the main graph writes.

    Attributes:
        name: of the tensor.
        node: of the node that writes it, or of its first output where it has none.
        operator: of that node.
    """

    name: str
    node: str
    operator: str


def inner_tensors(model: onnx.ModelProto) -> list[InnerTensor]:
    """The float tensors of the main graph, in the order in which they are computed."""
    graph = import_graph(model)
    return [InnerTensor(tensor.name, name_of(node), str(node.op)) for node, tensor, _ in _written(graph)]


def tap_tensors(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy of a model that gives out some of its inner tensors, before what it gives out anyway.

    The new outputs state a type and no shape: what runs it finds the shape.

    Args:
        model: not changed.
        names: of tensors that `inner_tensors` lists.
    """
    graph = import_graph(model)
    given = {id(tensor) for tensor in graph.outputs}
    tapped = []
    for _, tensor, code in _written(graph):
        if tensor.name in names and id(tensor) not in given:
            tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(code)
            tensor.shape = None  # type: ignore[assignment]  # as for a tensor that states none
            tapped.append(tensor)
    graph.outputs = tapped + graph.outputs
    return export_model(graph, model)


def _written(graph: gs.Graph) -> Iterator[tuple[gs.Node, gs.Variable, int]]:
    """Each float tensor with a name that a node writes, and its type."""
    types = ElementTypes(graph)
    for node in graph.nodes:
        for tensor in node.outputs:
            code = types.float_of(tensor)
            if tensor.name and code is not None:
                yield node, tensor, code
