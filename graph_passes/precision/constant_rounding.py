"""The constants of a graph in another float type, each made once, whoever reads it.

A weight is judged channel by channel (`weight_rounding`); a bound, a mask or a padding past the range
becomes the largest number of the type, which does the same; any other constant must fit.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.element_types import TYPE_NAMES
from vsfix.graph_passes.ir.graph import Tensor, graphs_of, is_graph_output
from vsfix.graph_passes.ir.stored_values import stored_values

from .weight_rounding import RoundingLoss, round_bound, round_weight

MULTIPLY_WEIGHTS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Einsum", "LSTM", "GRU", "RNN", "Attention"}
)
_SATURATE = frozenset({"Clip", "Max", "Min", "Where", "Pad"})


class ConstantRounding:
    """Rounds the constants of one graph.

    Args:
        graph: gives the names that are taken.
        loss: the losses of rounding are added to it.
        wanted: the float type that a node is to read at an input.
    """

    def __init__(self, graph: gs.Graph, loss: RoundingLoss, wanted: Callable[[gs.Node, int], int | None]) -> None:
        self._graph, self._loss, self._wanted = graph, loss, wanted
        self._made: dict[tuple[int, int], gs.Constant] = {}
        self._originals: list[gs.Constant] = []  # held, so that no other tensor gets the id of one
        self._names = {name for inner in graphs_of(graph) for name in inner.tensors()}
        self._returned = {id(tensor) for inner in graphs_of(graph) for tensor in inner.outputs}

    def round(
        self, tensor: Tensor, constant: gs.Constant, code: int, reader: gs.Node | None, index: int
    ) -> tuple[gs.Constant, bool]:
        """The constant that a tensor holds, in another float type, and whether it is new.

        It has the old name where nothing still reads the old constant.

        Args:
            tensor: the input of the reader.
            constant: the one that it holds.
            code: the type.
            reader: the node that reads it; None for a subgraph that returns it.
            index: the input of the reader.

        Raises:
            CheckFailedError: a value that the type can't hold.
        """
        if (id(constant), code) in self._made:
            return self._made[id(constant), code], False
        values, label = stored_values(constant), f"'{tensor.name}'"
        if reader is not None and reader.op in MULTIPLY_WEIGHTS:
            axis = _channel_axis(reader, index, values.ndim)
            factor = index == 1 or reader.op == "MatMul"
            rounded = round_weight(values, code, label, axis, self._loss, channels=factor)
        else:
            saturate = reader is not None and reader.op in _SATURATE
            rounded = round_bound(values, code, label, self._loss, saturate=saturate)
        free = tensor is constant and not self._stays(constant, code)
        made = gs.Constant(str(tensor.name) if free else self.fresh_name(str(tensor.name), code), rounded)
        self._made[id(constant), code] = made
        self._originals.append(constant)
        return made, True

    def fresh_name(self, name: str, code: int) -> str:
        """A name that no tensor of the graph has: the name and the type."""
        fresh = candidate = f"{name}.{TYPE_NAMES[code]}"
        number = 1
        while fresh in self._names:
            number += 1
            fresh = f"{candidate}.{number}"
        self._names.add(fresh)
        return fresh

    def _stays(self, constant: gs.Constant, code: int) -> bool:
        """Whether anything still reads the old constant, so that its name is taken."""
        if is_graph_output(self._graph, constant) or id(constant) in self._returned:
            return True
        reads = [(node, i) for node in constant.outputs for i, read in enumerate(node.inputs) if read is constant]
        return any(self._wanted(node, index) != code for node, index in reads)


def _channel_axis(node: gs.Node, index: int, rank: int) -> int | None:
    """The axis of a weight along which the output channels lie."""
    if rank == 0:
        return None
    if node.op == "MatMul":
        return rank - 1 if index == 1 else max(rank - 2, 0)
    if node.op == "Gemm" and index == 1:
        return 0 if node.attrs.get("transB", 0) else 1
    if node.op == "ConvTranspose" and index == 1:
        return 1
    return rank - 1 if node.op == "Gemm" else 0
