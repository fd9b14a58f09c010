"""The walk that casts a graph to one float type; `precision` states the result, this module computes it.

For each node in turn: an input of another float type than it should have is rounded (constants) or comes through a
Cast, made once for each tensor and type; a type that an attribute states becomes the target where a reader wants that;
the types of its outputs then follow from its schema. Subgraphs are walked where their node stands. At last the outputs
of the graph get their types back.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.ir.element_types import (
    BFLOAT16,
    FLOATS,
    TYPE_NAMES,
    ElementTypes,
    code_of,
    input_slot,
    output_slot,
    stated_type,
)
from vsfix.graph_passes.ir.graph import (
    Tensor,
    graphs_of,
    is_graph_output,
    is_standard,
    label_of,
    name_of,
    nodes_of,
    redirect_readers,
    subgraphs_of,
    upstream_constant,
)
from vsfix.graph_passes.ir.graph_pass import Change, Skipped
from vsfix.graph_passes.ir.stored_values import stored_values

from .constant_rounding import MULTIPLY_WEIGHTS, ConstantRounding
from .integer_arithmetic import integer_arithmetic
from .weight_rounding import DTYPES, RoundingLoss, round_bound

AS_ASKED = "left as it is, as was asked for"
# Nodes that say nothing of the type in which a graph computes.
_MOVE_DATA = frozenset({"Cast", "Constant", "ConstantOfShape", "Identity", "Shape", "Size"})
# Inputs that are unchanged though the schema would let them change: no data passes through them.
_UNCHANGED_INPUTS = frozenset({("Resize", "T2"), ("LayerNormalization", "U"), ("Dropout", "T1")})


class FloatCast:
    """One walk through the nodes of a graph in their order, which knows the types of all that it has passed.

    Attributes:
        changed: the changes, node by node.
        skipped: the nodes that keep another type, each with the reason.

    Args:
        graph: edited by `run`.
        code: the type to cast to, as a code of onnx.TensorProto.
        loss: the losses of rounding are added to it.
        kept: the nodes that keep their types; see `kept_nodes`.
    """

    def __init__(self, graph: gs.Graph, code: int, loss: RoundingLoss, kept: frozenset[int] = frozenset()) -> None:
        self.graph, self.code, self.loss, self.kept = graph, code, loss, kept
        self.opset = int(graph.opset)
        self.before = ElementTypes(graph)
        self.types = ElementTypes(graph)
        self.untouched = integer_arithmetic(graph, self.before, self._takes)
        self.changed: list[Change] = []
        self.skipped: list[Skipped] = []
        self._casts: list[dict[tuple[int, int], Tensor]] = []
        inside = [inner for inner in graphs_of(graph) if inner is not graph]
        self._returned = {id(tensor) for subgraph in inside for tensor in subgraph.outputs}
        self._pending: list[gs.Node] = []
        self._rounding = ConstantRounding(graph, loss, self._wanted)

    def run(self) -> None:
        """Casts the whole graph."""
        self._scope(self.graph)
        self._restore_outputs()
        for node in nodes_of(self.graph):
            for tensor in node.outputs:
                self._state(tensor)
        if self.changed:
            self.graph.cleanup()

    def _scope(self, graph: gs.Graph) -> None:
        """Casts the main graph or a subgraph: its nodes, then the outputs of a subgraph."""
        self._casts.append({})
        nodes: list[gs.Node] = []
        for node in list(graph.nodes):
            bypassed = self._node(node)
            nodes += self._pending
            self._pending = []
            if not bypassed:
                nodes.append(node)
        if graph is not self.graph:
            for index, tensor in enumerate(graph.outputs):
                if self.types.float_of(tensor) not in (None, self.code):
                    graph.outputs[index] = self._as(tensor, self.code, None, index)
            nodes += self._pending
            self._pending = []
        if len(nodes) != len(graph.nodes) or any(a is not b for a, b in zip(nodes, graph.nodes, strict=True)):
            graph.nodes.clear()
            graph.nodes.extend(nodes)
        self._casts.pop()

    def _node(self, node: gs.Node) -> bool:
        """Casts one node; whether it is superfluous now."""
        if id(node) in self.untouched:
            self.types.visit_node(node)
            self._note(node, "float arithmetic between integers")
            return False
        if id(node) not in self.kept:
            self._require_castable(node)
        for index, tensor in enumerate(node.inputs):
            wanted = self._wanted(node, index)
            if wanted is not None and self.types.float_of(tensor) not in (None, wanted):
                node.inputs[index] = self._as(tensor, wanted, node, index)
        pending, self._pending = self._pending, []
        for subgraph in subgraphs_of(node):
            self._enter(subgraph)
            self._scope(subgraph)
        self._pending = pending
        if id(node) in self.kept:
            self.types.visit_node(node)
            self._note(node, AS_ASKED)
            return False
        self._retarget(node)
        self.types.visit_node(node)
        self._note(node, f"it does not take {TYPE_NAMES[self.code]} at opset {self.opset}")
        return self._bypass(node)

    def _note(self, node: gs.Node, reason: str) -> None:
        """Adds a node to the changed ones, or to those that keep another type for a reason."""
        if any(self.types.of(tensor) != self.before.of(tensor) for tensor in node.outputs):
            self.changed.append(Change(label_of(node), f"computes in {TYPE_NAMES[self.code]}"))
        elif is_computation(node):
            found = computed_in(node, self.types)
            if found not in (None, self.code):
                self.skipped.append(Skipped(label_of(node), reason))

    def _require_castable(self, node: gs.Node) -> None:
        """Refuses a node of which nothing is known, and one that no opset in reach lets compute in the type."""
        if not any(self.before.float_of(tensor) for tensor in (*node.inputs, *node.outputs)):
            return
        if "Sequence" in node.op or node.op.startswith("Optional"):
            raise ModelError(f"{label_of(node)} holds sequences or optional values, which can't be cast")
        if not is_standard(node):
            raise ModelError(
                f"{label_of(node)} is not of the ONNX standard: in which float types it computes is unknown"
            )
        if node.op not in MULTIPLY_WEIGHTS:
            return
        for index, tensor in enumerate(node.inputs):
            if self.before.float_of(tensor) and not self._takes(node, index):
                raise ModelError(
                    f"{label_of(node)} does not take {TYPE_NAMES[self.code]} at opset {self.opset}; use a later one"
                )

    def _takes(self, node: gs.Node, index: int) -> bool:
        """Whether an input may have the target type, and data passes through it."""
        slot = input_slot(node, index, self.opset)
        return slot is not None and self.code in slot.types and (node.op, slot.variable) not in _UNCHANGED_INPUTS

    def _wanted(self, node: gs.Node, index: int) -> int | None:
        """The float type that a node is to read at an input; None where any type will do."""
        original = self.before.float_of(node.inputs[index])
        if original is None or node.op == "Cast":
            return None
        if id(node) in self.untouched or id(node) in self.kept or not self._takes(node, index):
            return original
        return self.code

    def _as(self, tensor: Tensor, code: int, reader: gs.Node | None, index: int) -> Tensor:
        """`tensor` in another float type: a constant rounded, anything else through a Cast."""
        constant = upstream_constant(tensor)
        if constant is not None:
            rounded, is_new = self._rounding.round(tensor, constant, code, reader, index)
            if is_new:
                self.before.set(rounded, code)
                self.changed.append(Change(str(tensor.name), f"rounded to {TYPE_NAMES[code]}"))
            return rounded
        for casts in self._casts:
            if (id(tensor), code) in casts:
                return casts[id(tensor), code]
        cast = gs.Variable(self._rounding.fresh_name(tensor.name, code), dtype=_dtype(code), shape=tensor.shape)
        node = gs.Node("Cast", f"{cast.name}.cast", {"to": code}, [tensor], [cast])
        self._pending.append(node)
        self._casts[-1][id(tensor), code] = cast
        self.before.set(cast, code)
        self.types.set(cast, code)
        self.changed.append(Change(node.name, f"inserted: {TYPE_NAMES[code]} from here on"))
        return cast

    def _enter(self, subgraph: gs.Graph) -> None:
        """The float inputs of a subgraph have the target type, as the tensors that enter it have now."""
        for tensor in subgraph.inputs:
            if self.before.float_of(tensor) is not None:
                self.types.set(tensor, self.code)
                self._state(tensor)

    def _retarget(self, node: gs.Node) -> None:
        """Turns the float type that an attribute states into the target type, where a reader wants it."""
        stated = stated_type(node)
        if stated not in FLOATS or stated == self.code or not self._is_wanted(node.outputs[0]):
            return
        slot = output_slot(node, 0, self.opset)
        if slot is None or self.code not in slot.types:
            return
        if node.op == "ConstantOfShape":
            value = node.attrs.get("value")
            values = np.zeros(1, np.float32) if value is None else stored_values(value)
            node.attrs["value"] = gs.Constant(
                "", round_bound(values, self.code, label_of(node), self.loss, saturate=False)
            )
        else:
            node.attrs["to" if node.op == "Cast" else "dtype"] = self.code

    def _is_wanted(self, tensor: Tensor) -> bool:
        """Whether a reader, or an output of a subgraph, wants a tensor in the target type."""
        return id(tensor) in self._returned or any(
            self._wanted(reader, index) == self.code
            for reader in tensor.outputs
            for index, read in enumerate(reader.inputs)
            if read is tensor
        )

    def _bypass(self, node: gs.Node) -> bool:
        """Takes out a Cast to the type that its input has already; whether it did."""
        if node.op != "Cast" or self.types.of(node.inputs[0]) != self.types.of(node.outputs[0]):
            return False
        source, output = node.inputs[0], node.outputs[0]
        held = id(output) in self._returned or is_graph_output(self.graph, output)
        if held or self.before.of(source) == self.before.of(output):
            return False
        redirect_readers(output, source)
        node.inputs.clear()
        node.outputs.clear()
        return True

    def _restore_outputs(self) -> None:
        """Puts a Cast upstream of each output of the graph whose type has changed; the output keeps its name."""
        for output in self.graph.outputs:
            declared, found = self.before.of(output), self.types.of(output)
            if declared == found or declared not in FLOATS or found not in FLOATS or not output.inputs:
                continue
            inner = gs.Variable(self._rounding.fresh_name(output.name, found), dtype=_dtype(found), shape=output.shape)
            self.types.set(inner, found)
            producer = output.inputs[0]
            producer.outputs[next(i for i, tensor in enumerate(producer.outputs) if tensor is output)] = inner
            redirect_readers(output, inner)
            for subgraph in [part for part in graphs_of(self.graph) if part is not self.graph]:
                subgraph.outputs = [inner if tensor is output else tensor for tensor in subgraph.outputs]
            cast = gs.Node("Cast", f"{output.name}.cast", {"to": declared}, [inner], [output])
            self.graph.nodes.append(cast)
            self.types.set(output, declared)
            self.changed.append(Change(cast.name, f"inserted: output '{output.name}' stays {TYPE_NAMES[declared]}"))

    def _state(self, tensor: Tensor) -> None:
        """Writes the float type of a tensor down, where the file states one."""
        code = self.types.float_of(tensor)
        if isinstance(tensor, gs.Variable) and code is not None and code_of(tensor.dtype) in FLOATS:
            tensor.dtype = _dtype(code)


def kept_nodes(graph: gs.Graph, names: Collection[str]) -> frozenset[int]:
    """The ids of the nodes of the main graph that have these names and no subgraph."""
    return frozenset(id(node) for node in graph.nodes if name_of(node) in names and not subgraphs_of(node))


def computed_in(node: gs.Node, types: ElementTypes) -> int | None:
    """The float type that a node writes, or else reads; None where it has no float."""
    tensors = [*node.outputs, *node.inputs]
    return next((code for code in map(types.float_of, tensors) if code is not None), None)


def is_computation(node: gs.Node) -> bool:
    """Whether a node computes, rather than moves data or holds subgraphs that compute."""
    return node.op not in _MOVE_DATA and not subgraphs_of(node)


def _dtype(code: int) -> object:
    """A type as onnx-graphsurgeon wants it: it takes a code for a type that numpy does not know."""
    return code if code == BFLOAT16 else np.dtype(DTYPES.get(code, np.float64))
