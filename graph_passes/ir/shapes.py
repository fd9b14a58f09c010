"""The shapes of the tensors of a graph, as far as shape inference and the graph itself determine them.

A dimension is a number, or a symbol: two dimensions with the same symbol are equal in every run. An unknown
dimension is a symbol of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.shape_inference
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from .graph import Tensor, upstream_constant

Dimension = int | str
_KEEP_SHAPE = frozenset("Identity Cast RandomUniformLike RandomNormalLike Bernoulli".split())
_SHAPE_INPUT = {"ConstantOfShape": 0, "Expand": 1}
# Their sizes are rounded, or a window dropped, as each runtime does it; inference and ONNX Runtime do not agree.
_ROUNDED = frozenset("Resize Upsample".split())
_LARGEST_VALUE = 64  # elements: what computes with shapes is smaller, and weights need not be copied


Shape = tuple[int | None, ...]
_LARGE = 1024  # elements; what a shape is computed from is smaller


class SymbolicShapes:
    """The shapes of the tensors of a main graph as it is now.

    Args:
        graph: not changed.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._shapes = _inferred(graph)

    def of(self, tensor: Tensor) -> tuple[Dimension, ...] | None:
        """The dimensions, or None where not even their number is known."""
        if isinstance(tensor, gs.Constant):
            return tuple(tensor.shape)
        source = _template(tensor)
        if len(source.inputs) == 1 and source.inputs[0].op in _SHAPE_INPUT and _fills(source.inputs[0]):
            dimensions = self.elements(source.inputs[0].inputs[_SHAPE_INPUT[source.inputs[0].op]])
            if dimensions is not None:
                return dimensions
        return self._shapes.get(tensor.name)

    def are_equal(self, one: Tensor, other: Tensor) -> bool:
        """Whether two tensors have the same shape in every run."""
        if one is other or _template(one) is _template(other):
            return True
        shape = self.of(one)
        return shape is not None and shape == self.of(other)

    def may_be_equal(self, one: Tensor, other: Tensor) -> bool:
        """Whether nothing that is known says that two tensors differ in shape, broadcasting of an axis included."""
        first, second = self.of(one), self.of(other)
        if first is None or second is None:
            return True
        pairs = zip(first, second, strict=False)
        return len(first) == len(second) and not any(a != b and isinstance(a, int) for a, b in pairs)

    def elements(self, shape: Tensor) -> tuple[Dimension, ...] | None:
        """The entries of a tensor of integers that a shape is computed from; None where they are unknown.

        Inference tells this too, but not before opset 13. What is computed otherwise from dimensions is a symbol.

        Args:
            shape: with at most one axis.
        """
        constant = upstream_constant(shape)
        if constant is not None:
            return tuple(int(value) for value in constant.values.reshape(-1))
        if len(shape.inputs) != 1:
            return None
        node = shape.inputs[0]
        if node.op in ("Unsqueeze", "Squeeze", "Cast", "Identity") or (node.op == "Reshape" and self._axes(shape) == 1):
            return self.elements(node.inputs[0])
        if node.op == "Where" and _replaces_minus_one(node):
            return self.elements(node.inputs[2])
        if node.op == "Concat":
            parts = [self.elements(tensor) for tensor in node.inputs]
            return None if None in parts else tuple(entry for part in parts for entry in part or ())
        if node.op == "Shape":
            dimensions = self.of(node.inputs[0])
            return None if dimensions is None else dimensions[node.attrs.get("start", 0) : node.attrs.get("end")]
        if node.op in ("Gather", "Slice"):
            return self._chosen(node)
        known = self._shapes.get(shape.name)
        if known is None or len(known) > 1 or not all(isinstance(side, int) for side in known):
            return None
        return tuple(f"{shape.name}[{index}]" for index in range(int(known[0]) if known else 1))

    def _axes(self, tensor: Tensor) -> int | None:
        """The number of axes of a tensor, where it is known."""
        shape = self._shapes.get(tensor.name)
        return None if shape is None else len(shape)

    def _chosen(self, node: gs.Node) -> tuple[Dimension, ...] | None:
        """The entries that a Gather or a Slice takes out of a tensor that a shape is computed from."""
        source = self.elements(node.inputs[0])
        where = [upstream_constant(tensor) for tensor in node.inputs[1:]]
        if source is None or not all(where):
            return None
        chosen = [int(index) for constant in where if constant is not None for index in constant.values.reshape(-1)]
        if node.op == "Slice":
            first, last, step = chosen[0], chosen[1], chosen[3] if len(chosen) == 4 else 1
            return source[slice(first, last, step)] if len(chosen) in (2, 3, 4) else None
        is_inside = all(-len(source) <= index < len(source) for index in chosen)
        return tuple(source[index] for index in chosen) if is_inside else None


def _fills(node: gs.Node) -> bool:
    """Whether a node fills a shape with one number."""
    return node.op == "ConstantOfShape" or _is_scalar(node.inputs[0])


def _template(tensor: Tensor) -> Tensor:
    """The tensor farthest upstream that has the shape of `tensor` by construction."""
    source: Tensor | None = tensor
    while source is not None:
        tensor = source
        source = _same_shape_before(tensor.inputs[0]) if len(tensor.inputs) == 1 else None
    return tensor


def _same_shape_before(node: gs.Node) -> Tensor | None:
    """An input of a node, or upstream of it, that has the shape of its output; or None."""
    if node.op in _KEEP_SHAPE:
        source: Tensor = node.inputs[0]
        return source
    if node.op == "ConstantOfShape":
        return _owner_of_shape(node.inputs[0])
    return _owner_of_shape(node.inputs[1]) if node.op == "Expand" and _fills(node) else None


def _is_scalar(tensor: Tensor) -> bool:
    """Whether a tensor is one number with at most one axis."""
    constant = upstream_constant(tensor)
    return constant is not None and constant.values.size == 1 and constant.values.ndim <= 1


def _owner_of_shape(shape: Tensor) -> Tensor | None:
    """The tensor whose whole shape `shape` is, or None."""
    if len(shape.inputs) != 1:
        return None
    node = shape.inputs[0]
    if node.op == "Where" and _replaces_minus_one(node):
        return _owner_of_shape(node.inputs[2])
    if node.op != "Shape" or node.attrs.get("start", 0) or "end" in node.attrs:
        return None
    owner: Tensor = node.inputs[0]
    return owner


def _replaces_minus_one(node: gs.Node) -> bool:
    """Whether a Where is how torch.Tensor.expand is exported, which changes nothing in a shape without -1."""
    if not node.inputs[0].inputs or not node.inputs[1].inputs:
        return False
    equal, ones = node.inputs[0].inputs[0], node.inputs[1].inputs[0]
    return equal.op == "Equal" and equal.inputs[0] is node.inputs[2] and ones.op == "ConstantOfShape"


def shapes_of_run(graph: gs.Graph, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes that inference finds for a run of inputs of these shapes, by the name of the tensor.

    Args:
        graph: not changed; what it states of its inner tensors is not believed.
        inputs: the shape of every graph input, by its name.

    Returns:
        Those whose every side is found; none where the runtime alone tells what a node gives.
    """
    if any(_is_told_by_runtime(node) for node in graph.nodes):
        return {}
    copy = graph.copy()
    for tensor in (tensor for node in copy.nodes for tensor in node.outputs):
        tensor.shape = None
    for tensor in copy.inputs:
        tensor.shape = inputs[tensor.name]
    try:
        found = _inferred(copy)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return {}
    return {
        name: tuple(int(side) for side in shape)
        for name, shape in found.items()
        if all(isinstance(side, int) for side in shape)
    }


def _is_told_by_runtime(node: gs.Node) -> bool:
    """Whether inference may find other shapes than a run has."""
    is_padded = node.op == "ConvTranspose" and node.attrs.get("auto_pad", "NOTSET") != "NOTSET"
    return node.op in _ROUNDED or bool(node.attrs.get("ceil_mode")) or is_padded


def _inferred(graph: gs.Graph) -> dict[str, tuple[Dimension, ...]]:
    """Shape inference over the graph without its weights."""
    copy = graph.copy()
    for tensor in copy.tensors().values():
        if isinstance(tensor, gs.Constant) and tensor.values.size > _LARGEST_VALUE:
            tensor.to_variable(tensor.export_dtype, tensor.shape)
            tensor.type = "tensor_type"  # to_variable forgets it, and the exporter needs it
            copy.inputs.append(tensor)
    with G_LOGGER.suppress(G_LOGGER.ERROR):
        model = gs.export_onnx(copy, do_type_check=False)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        entry.name: tuple(
            _dimension(entry.name, axis, dim) for axis, dim in enumerate(entry.type.tensor_type.shape.dim)
        )
        for entry in (*inferred.input, *inferred.value_info, *inferred.output)
        if entry.type.tensor_type.HasField("shape")
    }


def _dimension(name: str, axis: int, dimension: onnx.TensorShapeProto.Dimension) -> Dimension:
    """One dimension; unknown ones get a symbol that no other has."""
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value)
    return str(dimension.dim_param) or f"{name}.{axis}?"


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
