"""The element type of every tensor of a graph, from the schemas of its operators.

A schema gives each input and output a *slot*: the name of a type variable (`T`) or one type that it always has
(`tensor(float)`), and the types that it may have. What a node writes follows from what it reads: an output has the type
that its variable got from an input, or that an attribute states (Cast, ConstantOfShape, RandomNormal).

Nothing here relies on what the file states about its inner tensors, which editors of graphs leave behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx
import onnx.defs
import onnx.helper
import onnx_graphsurgeon as gs

from .graph import Tensor, is_standard, subgraphs_of
from .subgraphs import subgraph_links

FLOAT: int = onnx.TensorProto.FLOAT
FLOAT16: int = onnx.TensorProto.FLOAT16
BFLOAT16: int = onnx.TensorProto.BFLOAT16
DOUBLE: int = onnx.TensorProto.DOUBLE
FLOATS = frozenset({FLOAT, FLOAT16, BFLOAT16, DOUBLE})
TYPE_NAMES = {FLOAT: "float32", FLOAT16: "float16", BFLOAT16: "bfloat16", DOUBLE: "float64"}
_CODES: dict[str, int] = dict(onnx.TensorProto.DataType.items())
_DTYPE_OF_INPUT = frozenset({"RandomNormalLike", "RandomUniformLike", "EyeLike", "Bernoulli"})


@dataclass(frozen=True)
class Slot:
    """The type variable and the types that a schema gives one input or output.

    Attributes:
        variable: the type variable, or the one type where it has no other.
        types: the tensor types that it may have, as codes of onnx.TensorProto.
    """

    variable: str
    types: frozenset[int]


def state_types(graph: gs.Graph) -> None:
    """Writes the type of every tensor of the main graph whose type is known onto it."""
    types = ElementTypes(graph)
    for node in graph.nodes:
        for tensor in node.outputs:
            if (code := types.of(tensor)) is not None:
                tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(code)


def input_slot(node: gs.Node, index: int, opset: int) -> Slot | None:
    """The slot of an input; None where no schema is known or it takes no tensors."""
    slots = _slots(node.op, opset, True) if is_standard(node) else ()
    return _at(slots, index)


def output_slot(node: gs.Node, index: int, opset: int) -> Slot | None:
    """The slot of an output; None as for an input."""
    slots = _slots(node.op, opset, False) if is_standard(node) else ()
    return _at(slots, index)


def code_of(dtype: object) -> int | None:
    """The code of onnx.TensorProto for a type as onnx-graphsurgeon states it; None where it states none."""
    if dtype is None or isinstance(dtype, int):
        return dtype or None
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))  # type: ignore[call-overload]


def stated_type(node: gs.Node) -> int | None:
    """The type that an attribute of Cast, ConstantOfShape or a random operator states for its output, or None."""
    if node.op == "Cast":
        return code_of(node.attrs["to"])
    if node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        return FLOAT if value is None else code_of(value.dtype)
    if node.op in ("RandomNormal", "RandomUniform"):
        return code_of(node.attrs.get("dtype", FLOAT))
    return code_of(node.attrs.get("dtype")) if node.op in _DTYPE_OF_INPUT else None


class ElementTypes:
    """The types of a graph's tensors as it is now, subgraphs included.

    Args:
        graph: not changed.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._opset = int(graph.opset)
        self._types: dict[int, int | None] = {}
        for tensor in graph.inputs:
            self.set(tensor, code_of(tensor.dtype))
        self._visit(graph)

    def of(self, tensor: Tensor) -> int | None:
        """The type of a tensor; None where it is unknown, and for an input that is left out."""
        if isinstance(tensor, gs.Constant):
            return code_of(tensor.dtype)
        if id(tensor) in self._types:
            return self._types[id(tensor)]
        return None if tensor.is_empty() else code_of(tensor.dtype)

    def set(self, tensor: Tensor, code: int | None) -> None:
        """States the type of a tensor."""
        self._types[id(tensor)] = code

    def float_of(self, tensor: Tensor) -> int | None:
        """The type where it is one of floating point, else None."""
        code = self.of(tensor)
        return code if code in FLOATS else None

    def visit_node(self, node: gs.Node) -> None:
        """Finds the types of what one node writes, from what it reads."""
        for output, code in zip(node.outputs, self._written(node), strict=True):
            self.set(output, code_of(output.dtype) if code is None else code)

    def enter(self, node: gs.Node) -> None:
        """Gives the inputs of a node's subgraphs the types of what enters them."""
        links = subgraph_links(node)
        inputs = {id(tensor): tensor for subgraph in links.subgraphs for tensor in subgraph.inputs}
        for source, target in links.entering:
            if code_of(inputs[target].dtype) is None and self._types.get(target) is None:
                self._types[target] = self._types.get(source)

    def _visit(self, graph: gs.Graph) -> None:
        """Goes through the nodes in their order."""
        for node in graph.nodes:
            self.enter(node)
            for subgraph in subgraphs_of(node):
                self._visit(subgraph)
            self.visit_node(node)

    def _written(self, node: gs.Node) -> list[int | None]:
        """The types of the outputs."""
        stated = self._stated(node)
        if stated is not None:
            return [stated] * len(node.outputs)
        if subgraphs_of(node):
            return self._of_subgraphs(node)
        bound: dict[str, int | None] = {}
        for index, tensor in enumerate(node.inputs):
            slot = input_slot(node, index, self._opset)
            if slot is not None and bound.get(slot.variable) is None:
                bound[slot.variable] = self.of(tensor)
        slots = [output_slot(node, index, self._opset) for index in range(len(node.outputs))]
        return [None if slot is None else bound.get(slot.variable) or _only(slot.types) for slot in slots]

    def _stated(self, node: gs.Node) -> int | None:
        """The type that an attribute states, or that is meant where it could and does not; or None."""
        if not is_standard(node):
            return None
        if node.op == "Constant":
            return _constant_type(node)
        if node.op in _DTYPE_OF_INPUT:
            return stated_type(node) or self.of(node.inputs[0])
        return stated_type(node)

    def _of_subgraphs(self, node: gs.Node) -> list[int | None]:
        """If gives what a branch gives, Loop and Scan what their subgraph does, Loop less its condition."""
        results: Sequence[Tensor] = subgraphs_of(node)[0].outputs
        if node.op == "Loop":
            results = list(results)[1:]
        return [self.of(tensor) for tensor in results]


def _constant_type(node: gs.Node) -> int | None:
    """The type of what a Constant node holds."""
    if "value" in node.attrs:
        return code_of(node.attrs["value"].dtype)
    texts = {"value_float": FLOAT, "value_floats": FLOAT, "value_int": onnx.TensorProto.INT64}
    texts |= {"value_ints": onnx.TensorProto.INT64}
    return next((code for name, code in texts.items() if name in node.attrs), None)


def _only(types: frozenset[int]) -> int | None:
    """The one type of a slot, or None."""
    return next(iter(types)) if len(types) == 1 else None


def _at(slots: tuple[tuple[Slot | None, bool], ...], index: int) -> Slot | None:
    """The slot at a position; a variadic one stands for all from its own on."""
    if index < len(slots):
        return slots[index][0]
    return slots[-1][0] if slots and slots[-1][1] else None


@lru_cache(maxsize=4096)
def _slots(op: str, opset: int, inputs: bool) -> tuple[tuple[Slot | None, bool], ...]:
    """The slots of an operator, each with whether it is variadic; none where the standard has no such operator."""
    try:
        schema = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return ()
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    slots: list[tuple[Slot | None, bool]] = []
    for formal in schema.inputs if inputs else schema.outputs:
        codes = frozenset(_codes(allowed.get(formal.type_str, [formal.type_str])))
        variadic = formal.option == onnx.defs.OpSchema.FormalParameterOption.Variadic
        # A variadic slot whose members differ (the carried values of Loop) binds nothing together.
        name = formal.type_str if formal.is_homogeneous else f"{formal.type_str} each"
        slots.append((Slot(name, codes) if codes else None, variadic))
    return tuple(slots)


def _codes(texts: Sequence[str]) -> Iterator[int]:
    """`tensor(float16)` and the like as codes; sequences and optional values are left out."""
    for text in texts:
        if text.startswith("tensor("):
            name = text[len("tensor(") : -1].upper()
            if name in _CODES:
                yield _CODES[name]
