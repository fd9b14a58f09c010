"""The shapes of tensors, inferred where the file does not state them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.shape_inference
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from .tensors import Tensor

Shape = tuple[int | None, ...]
_LARGE = 1024  # elements; what a shape is computed from is smaller


class TensorShapes:
    """The shapes of a graph's tensors. They are inferred once, when the first one is asked for that is not stated.

    Args:
        graph: not changed.
        stated: whether to believe what the file states of its inner tensors, which editors of graphs leave behind.
    """

    def __init__(self, graph: gs.Graph, *, stated: bool = True) -> None:
        self._graph = graph
        self._stated = stated
        self._inferred: dict[str, Shape] | None = None

    def of(self, tensor: Tensor) -> Shape | None:
        """The sides of a tensor, None for one that is not a number; None where not even their count is known."""
        stated = _sides(tensor.shape) if self._stated or not tensor.inputs else None
        if stated is not None and None not in stated[1:]:
            return stated
        if self._inferred is None:
            self._inferred = _infer(self._graph, self._stated)
        return self._inferred.get(tensor.name, stated)


def _sides(shape: object) -> Shape | None:
    """The sides as numbers where they are numbers."""
    if not isinstance(shape, (list, tuple)):
        return None
    return tuple(side if isinstance(side, int) else None for side in shape)


def _infer(graph: gs.Graph, stated: bool) -> dict[str, Shape]:
    """Runs onnx's shape inference on the graph without its weights."""
    skeleton = graph.copy()
    for node in () if stated else skeleton.nodes:
        for tensor in node.outputs:
            tensor.shape = None
    for tensor in skeleton.tensors().values():
        if isinstance(tensor, gs.Constant) and np.prod(tensor.shape) > _LARGE:
            variable = tensor.to_variable(tensor.export_dtype, tensor.shape)
            variable.type = "tensor_type"  # which the conversion forgets
            skeleton.inputs.append(variable)
    with G_LOGGER.suppress(G_LOGGER.ERROR):
        model = gs.export_onnx(skeleton, do_type_check=False)
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return {}
    return {
        info.name: tuple(
            side.dim_value if side.HasField("dim_value") else None for side in info.type.tensor_type.shape.dim
        )
        for info in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        if info.type.tensor_type.HasField("shape")
    }
