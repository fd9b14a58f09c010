"""Precision as a property of the graph: weights and activations in one float type, for strongly typed runtimes.

TensorRT 10 and 11 (strongly typed) and TensorRT-RTX compute in the types that the file states. `CastPrecision` states
float16, bfloat16 or float32 throughout:

- Every operator reads and writes the target type wherever its schema lets it, at the opset of the graph. Where it does
  not (scales of Resize, Range, NonMaxSuppression, scales of QuantizeLinear at an early opset) a Cast to float32 stands
  upstream of it and one back downstream.
- A weight is rounded once (`weight_rounding`); a BatchNorm that was not folded is folded in itself
  (`typed_batch_norm`).
- The inputs and outputs of the graph keep their names and types: a Cast stands downstream of each float input and
  upstream of each float output. If, Loop and Scan pass on the target type, and their subgraphs compute in it.
- Float arithmetic on integers that ends in integers again, as that on shapes, keeps its type: 2049 is no float16.

Afterwards the types are read anew from the graph, and an operator that multiplies weights in another float type is an
error: asked for and not got.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import CheckFailedError, InputError
from vsfix.graph_passes.ir.element_types import BFLOAT16, FLOAT, FLOAT16, TYPE_NAMES, ElementTypes
from vsfix.graph_passes.ir.graph import graphs_of, is_standard, label_of, name_of, nodes_of, subgraphs_of
from vsfix.graph_passes.ir.graph_pass import Change, PassResult

from .constant_rounding import MULTIPLY_WEIGHTS
from .float_cast import FloatCast, computed_in, is_computation, kept_nodes
from .typed_batch_norm import type_batch_norms
from .weight_rounding import RoundingLoss

PRECISIONS = {"fp32": FLOAT, "fp16": FLOAT16, "bf16": BFLOAT16}
_FLOAT8 = frozenset({onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2})


_BEGIN = MULTIPLY_WEIGHTS - {"BatchNormalization"}
_GATES = {
    "HardSwish": (("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),),
    "Mish": (("Softplus", {}), ("Tanh", {})),
}


class CastPrecision:
    """Makes a graph compute in one float type.

    Attributes:
        name: of the pass.
        code: the type, as a code of onnx.TensorProto.
        loss: of the rounding in the last run.

    Args:
        precision: `fp32`, `fp16` or `bf16`.
        kept: names of nodes of the main graph that keep their types, between Casts.

    Raises:
        InputError: another precision.
    """

    def __init__(self, precision: str, kept: Collection[str] = ()) -> None:
        self.name = f"cast to {precision}"
        self.code = parse_precision(precision)
        self.kept = frozenset(kept)
        self.loss = RoundingLoss()

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place.

        Raises:
            ModelError: an operator that can't be cast: not of the standard, or its opset does not take the type.
            CheckFailedError: a weight that the type can't hold, or an operator that still computes in another type.
        """
        self.loss = RoundingLoss()
        kept = kept_nodes(graph, self.kept)
        changed: list[Change] = []
        if self.code == BFLOAT16:
            changed += split_activations(graph, kept)
        if self.code != FLOAT:
            changed += type_batch_norms(graph, self.code, self.loss, kept)
        cast = FloatCast(graph, self.code, self.loss, kept)
        cast.run()
        _require_precision(graph, self.code, kept)
        return PassResult(self.name, (*changed, *cast.changed), tuple(cast.skipped))


def parse_precision(precision: str) -> int:
    """The code of onnx.TensorProto.

    Raises:
        InputError: not one of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision '{precision}': choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def count_float_types(graph: gs.Graph) -> dict[str, int]:
    """The number of nodes that compute in each float type, by its name, subgraphs included, moves of data excluded."""
    types = ElementTypes(graph)
    counts: Counter[str] = Counter()
    for node in nodes_of(graph):
        code = computed_in(node, types) if is_computation(node) else None
        if code is not None:
            counts[TYPE_NAMES[code]] += 1
    return dict(counts.most_common())


def layer_groups(graph: gs.Graph) -> dict[str, tuple[str, ...]]:
    """The names of the nodes of each layer, which a cast takes or leaves as one, by the name of its first node.

    A layer begins with an operator that multiplies weights, and holds what follows it up to the next one: an overflow
    between two nodes of a layer is gone where the layer is left in float32. A node that several layers lead to belongs
    to the last of them; nodes upstream of every layer make one of their own. Nodes with subgraphs, and those without
    floats, belong to no layer.

    Args:
        graph: sorted; not changed.
    """
    types = ElementTypes(graph)
    groups: dict[str, list[str]] = {}
    places: dict[int, str] = {}  # of each tensor, the layer that writes it
    order: dict[str, int] = {}
    for node in graph.nodes:
        name = name_of(node)
        upstream = [places[id(tensor)] for tensor in node.inputs if id(tensor) in places]
        last = max(upstream, key=order.__getitem__) if upstream else None
        has_floats = any(types.float_of(tensor) for tensor in (*node.inputs, *node.outputs))
        if subgraphs_of(node) or not has_floats or not is_computation(node):
            place = last
        else:
            place = name if node.op in _BEGIN or last is None else last
            groups.setdefault(place, []).append(name)
            order.setdefault(place, len(order))
        if place is not None:
            places |= dict.fromkeys(map(id, node.outputs), place)
    return {name: tuple(nodes) for name, nodes in groups.items()}


def nodes_of_layers(groups: Mapping[str, Sequence[str]], layers: Iterable[str]) -> frozenset[str]:
    """The names of all nodes of some layers."""
    return frozenset(node for layer in layers for node in groups[layer])


def stated_precision(graph: gs.Graph) -> str:
    """The coarsest precision in which a graph computes, as `--precision` names it; `fp32` for float64 too.

    A graph with QuantizeLinear is quantised: `fp8` where a zero point or the output is a float8, else `int8`.
    """
    quantizers = [node for node in nodes_of(graph) if node.op == "QuantizeLinear"]
    if quantizers:
        types = ElementTypes(graph)
        codes = {types.of(node.outputs[0]) for node in quantizers}
        return "fp8" if codes & _FLOAT8 else "int8"
    counts = count_float_types(graph)
    return next((name for name in ("bf16", "fp16") if TYPE_NAMES[PRECISIONS[name]] in counts), "fp32")


def _require_precision(graph: gs.Graph, code: int, kept: frozenset[int]) -> None:
    """Checks, on types read anew, that every operator that multiplies weights does so in it, those kept excepted."""
    types = ElementTypes(graph)
    for node in nodes_of(graph):
        if node.op in MULTIPLY_WEIGHTS and is_standard(node) and id(node) not in kept:
            others = {types.float_of(tensor) for tensor in (*node.inputs, *node.outputs)} - {None, code}
            if others:
                found = TYPE_NAMES[others.pop() or FLOAT]
                raise CheckFailedError(f"{label_of(node)} computes in {found}, not in {TYPE_NAMES[code]}")


def split_activations(graph: gs.Graph, kept: Collection[int] = ()) -> list[Change]:
    """Splits every HardSwish and Mish of a graph and of the subgraphs in it but for those kept; edits in place."""
    changes = []
    for inner in graphs_of(graph):
        for node in [node for node in inner.nodes if node.op in _GATES and is_standard(node)]:
            if id(node) in kept:
                continue
            changes.append(Change(name_of(node), f"{node.op} written as a product: TensorRT takes none in bfloat16"))
            _split(inner, node)
    return changes


def _split(graph: gs.Graph, node: gs.Node) -> None:
    """Writes one activation as x gate(x); the gate's nodes take its position."""
    x, position = node.inputs[0], next(index for index, other in enumerate(graph.nodes) if other is node)
    gate, nodes = x, []
    for step, (op, attrs) in enumerate(_GATES[node.op]):
        written = gs.Variable(f"{node.outputs[0].name}.gate{step}", dtype=x.dtype, shape=x.shape)
        nodes.append(gs.Node(op, attrs=dict(attrs), inputs=[gate], outputs=[written]))
        gate = written
    node.op, node.attrs = "Mul", {}
    node.inputs.append(gate)
    graph.nodes[position:position] = nodes
