"""Computes the constant expressions of a file: parameters, weights, shapes, axes.

Two passes. `ResolveShapes` comes before anything else looks at a graph: where the type and the sides of a tensor are
known, CastLike becomes Cast and Shape becomes a constant. `FoldConstants` computes every expression of constants, node
by node, in onnx's reference evaluator, in the subgraphs of If, Loop and Scan too.

The second one would destroy evidence: a BatchNorm written as primitives loses its variance once sqrt(var + eps) is one
number. `RecomposeBatchNorm` therefore goes before it. Always unchanged: weights in eight bits with their
DequantizeLinear, which a runtime wants as they are, and whatever is drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import first_line

from .element_types import ElementTypes
from .graph import Tensor, graphs_of, is_batch_norm, is_graph_output, is_standard, name_of, nodes_of, upstream_constant
from .graph_pass import Change, PassResult, Skipped
from .runtime import Array
from .shapes import TensorShapes
from .stored_values import stored_values

MAX_ELEMENTS = 10**6
# Deterministic, and none makes more out of its inputs than a shape among them says.
FOLDABLE_OPERATORS = frozenset(
    "Abs Add And ArgMax ArgMin Cast CastLike Ceil Clip Concat Constant ConstantOfShape Conv Cos CumSum "
    "DequantizeLinear Div Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Greater "
    "GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max "
    "Mean Min Mod Mul Neg NonZero Not Or Pad Pow Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
    "ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round ScatterElements ScatterND "
    "Shape Sigmoid Sign Sin Size Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tan Tanh Tile Transpose Trilu "
    "Unsqueeze Where Xor".split()
)
_EIGHT_BITS = "DequantizeLinear"
_BROADCAST = frozenset(
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow Sub Sum Where Xor".split()
)
_NUMBERS = "fiub"  # the kinds of numpy's own types


class ResolveShapes:
    """Makes constants of what a file computes from sides that it knows, and Cast of CastLike."""

    name = "resolve shapes and types"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place."""
        asked = [node for node in graph.nodes if node.op == "Shape" and is_standard(node)]
        asked += [node for node in nodes_of(graph) if node.op == "CastLike" and is_standard(node)]
        if not asked:
            return PassResult(self.name)
        types, shapes = ElementTypes(graph), TensorShapes(graph, stated=False)
        resolved = 0
        for node in asked:
            if node.op == "CastLike":
                resolved += _state_cast(node, types)
            else:
                resolved += sum(_state_sides(graph, *known) for known in _known_sides(graph, node, shapes))
        if resolved:
            graph.cleanup()
        count = f"{resolved} shape{'s' if resolved > 1 else ''} or type{'s' if resolved > 1 else ''} stated"
        return PassResult(self.name, (Change("the graph", count),) if resolved else ())


def _state_cast(node: gs.Node, types: ElementTypes) -> bool:
    """Makes a Cast of a CastLike where the type is known."""
    code = types.of(node.inputs[1])
    if code is None:
        return False
    node.op, node.attrs = "Cast", {"to": code}
    del node.inputs[1]
    return True


def _known_sides(graph: gs.Graph, node: gs.Node, shapes: TensorShapes) -> Iterator[tuple[Tensor, Array]]:
    """The tensors that hold sides of what a Shape looks at: its own output, or what is taken out of it."""
    shape = shapes.of(node.inputs[0])
    if shape is None:
        return
    sides = np.array([-1 if side is None else side for side in shape], dtype=np.int64)  # -1: unknown
    sides = sides[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
    output = node.outputs[0]
    if (sides >= 0).all():
        yield output, sides
        return
    for reader in list(output.outputs):
        if reader.op not in ("Gather", "Slice") or reader.inputs[0] is not output or not is_standard(reader):
            continue
        given = {output.name: sides}
        for tensor in reader.inputs[1:]:
            values = evaluate_constant(graph, tensor)
            if isinstance(values, str):
                break
            given[tensor.name] = values
        else:
            chosen = _evaluate(graph, reader, given, MAX_ELEMENTS)
            if not isinstance(chosen, str) and (chosen[0] >= 0).all():
                yield reader.outputs[0], chosen[0]


def _state_sides(graph: gs.Graph, tensor: Tensor, sides: Array) -> bool:
    """Makes a constant of a tensor."""
    if isinstance(tensor, gs.Constant) or is_graph_output(graph, tensor):
        return False
    tensor.inputs.clear()
    tensor.to_constant(sides)
    return True


class FoldConstants:
    """Computes every expression of constants, and says of BatchNorm parameters why they can't be computed."""

    name = "fold constants"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place."""
        graphs = list(graphs_of(graph))
        outputs = {id(tensor) for owner in graphs for tensor in owner.outputs}
        computed = sum(_compute(graph, owner, node, outputs) for owner in graphs for node in list(owner.nodes))
        skipped: list[Skipped] = []
        for node in [node for node in nodes_of(graph) if is_batch_norm(node)]:
            for index, tensor in enumerate(node.inputs[1:5], 1):
                if upstream_constant(tensor) is None:
                    values = evaluate_constant(graph, tensor)
                    if isinstance(values, str):
                        skipped.append(Skipped(name_of(node), f"its parameter '{tensor.name}' {values}"))
                    else:  # one in eight bits, or an output of the graph
                        node.inputs[index] = gs.Constant(f"{tensor.name}.folded", values)
                        computed += 1
        if computed:
            graph.cleanup()
        changed = (Change("constants", f"{computed} computed"),) if computed else ()
        return PassResult(self.name, changed, tuple(skipped))


def _compute(graph: gs.Graph, owner: gs.Graph, node: gs.Node, outputs: set[int]) -> bool:
    """Makes constants of what a node of `owner` writes, where it reads constants alone."""
    if node.op not in FOLDABLE_OPERATORS or node.op == _EIGHT_BITS or not is_standard(node):
        return False
    if not all(isinstance(tensor, gs.Constant) or tensor.is_empty() for tensor in node.inputs):
        return False
    returned = any(id(tensor) in outputs for tensor in node.outputs)
    if returned and node.op in ("Constant", "Identity"):
        return False
    feeds = {tensor.name: stored_values(tensor) for tensor in node.inputs if isinstance(tensor, gs.Constant)}
    if any(array.dtype.kind not in _NUMBERS for array in feeds.values()):
        return False
    values = _evaluate(graph, node, feeds, max(MAX_ELEMENTS, sum(array.size for array in feeds.values())))
    if isinstance(values, str) or any(array.dtype.kind not in _NUMBERS for array in values):
        return False
    for tensor, array in zip(list(node.outputs), values, strict=True):
        tensor.inputs.clear()
        if id(tensor) not in outputs:
            tensor.to_constant(array)
            continue
        attributes: dict[str, object] = {"value": gs.Constant(str(tensor.name), array)}
        position = next(index for index, other in enumerate(owner.nodes) if other is node)
        owner.nodes.insert(position, gs.Node("Constant", name_of(node), attributes, outputs=[tensor]))
    return True


def _elements(node: gs.Node, arrays: list[Array]) -> float:
    """The number of elements that a node writes; 0 where no operator of its kind writes more than it reads."""
    op = node.op
    if op == "ConstantOfShape":
        return float(np.prod(arrays[0], dtype=np.float64))
    if op == "Conv":
        sides = np.array(arrays[0].shape[2:], dtype=np.float64) + sum(node.attrs.get("pads", ()))
        return float(arrays[0].shape[0] * arrays[1].shape[0] * np.prod(sides))
    if op == "Expand":
        sides = np.broadcast_shapes(arrays[0].shape, tuple(int(side) for side in arrays[1]))
        return float(np.prod(sides, dtype=np.float64))
    if op == "Tile":
        return float(arrays[0].size * np.prod(arrays[1].astype(np.float64)))
    if op == "Range":
        return float(abs((arrays[1] - arrays[0]) / arrays[2]))
    if op == "MatMul":
        return float(arrays[0].size * arrays[1].shape[-1])
    if op == "Gather":
        side = arrays[0].shape[node.attrs.get("axis", 0)]
        return float(arrays[1].size * arrays[0].size / max(side, 1))
    if op == "GatherND":
        first = node.attrs.get("batch_dims", 0) + arrays[1].shape[-1]
        return float(np.prod((*arrays[1].shape[:-1], *arrays[0].shape[first:]), dtype=np.float64))
    if op == "Pad" and len(arrays) > 1:
        sides, pads = np.array(arrays[0].shape, dtype=np.float64), arrays[1].reshape(2, -1).sum(axis=0)
        some = sides.size != pads.size
        sides[arrays[-1] if some else slice(None)] += pads
        return float(np.prod(sides))
    if op in _BROADCAST:
        return float(np.prod(np.broadcast_shapes(*(array.shape for array in arrays)), dtype=np.float64))
    return 0.0


def _evaluate(graph: gs.Graph, node: gs.Node, feeds: Mapping[str, Array], limit: float) -> list[Array] | str:
    """The outputs of a node, or the reason why they are not computed.

    Args:
        graph: of the node, for its opset.
        node: deterministic.
        feeds: its inputs, by the names of the tensors.
        limit: how many elements it may write.
    """
    from onnx.reference import ReferenceEvaluator  # here, because few files need it, and it takes its time
    from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

    try:
        if _elements(node, [feeds[tensor.name] for tensor in node.inputs if not tensor.is_empty()]) > limit:
            return f"has more than {limit:.0f} elements"
        evaluator = ReferenceEvaluator(OnnxExporter.export_node(node), opsets={"": int(graph.opset)})
        with np.errstate(all="ignore"):
            return [np.asarray(array) for array in evaluator.run(None, dict(feeds))]
    except Exception as error:  # the evaluator has no error of its own
        return f"can't be computed ({first_line(error)})"


def evaluate_constant(graph: gs.Graph, tensor: Tensor, *, max_elements: int = MAX_ELEMENTS) -> Array | str:
    """The value of a tensor that the graph computes from constants alone, or the reason why it has none.

    Args:
        graph: not changed.
        tensor: of `graph`.
        max_elements: no tensor of the computation may be larger.
    """
    known = upstream_constant(tensor)
    return stored_values(known) if known is not None else _value(graph, tensor, {}, max_elements)


def _value(graph: gs.Graph, tensor: Tensor, known: dict[int, Array], limit: int) -> Array | str:
    """The value of a tensor, or the reason; all that is computed for it is added to `known`, by the ids of tensors."""
    if isinstance(tensor, gs.Constant):
        return f"has more than {limit} elements" if np.prod(tensor.shape) > limit else stored_values(tensor)
    if id(tensor) in known:
        return known[id(tensor)]
    if not tensor.inputs:
        return f"depends on '{tensor.name}', an input of the graph"
    node = tensor.inputs[0]
    if node.op not in FOLDABLE_OPERATORS or not is_standard(node):
        return f"is computed by {node.op}, which is not computed in advance"
    feeds: dict[str, Array] = {}
    for needed in node.inputs:
        if needed.is_empty():
            continue
        found = _value(graph, needed, known, limit)
        if isinstance(found, str):
            return found
        feeds[needed.name] = found
    written = _evaluate(graph, node, feeds, limit)
    if isinstance(written, str):
        return written
    known.update((id(output), array) for output, array in zip(node.outputs, written, strict=True))
    return known[id(tensor)]
