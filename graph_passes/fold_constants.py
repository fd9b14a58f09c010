"""Computes the parameters of BatchNorms that the file spells out as a computation on constants.

A parameter may come through Cast, Reshape, ConstantOfShape or arithmetic on constants. Such a parameter is computed
once, by onnx's reference evaluator, and stands in the file as a constant of its own afterwards. Nothing else is folded.

Folding a whole graph would destroy evidence: a BatchNorm written as primitives loses its variance once sqrt(var + eps)
is one number. `RecomposeBatchNorm` therefore goes before any other folding.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from .batch_norm import is_batch_norm, stored_values
from .graph_pass import Change, Kept, PassResult
from .inference import Array
from .model_file import export_subgraph, first_line
from .nodes import is_standard, name_of
from .tensors import Tensor, constant_behind

MAX_ELEMENTS = 10**6
# Deterministic, and none makes more out of its inputs than a shape among them says.
FOLDABLE_OPERATORS = frozenset(
    "Abs Add Cast CastLike Clip Concat Constant ConstantOfShape DequantizeLinear Div Exp Expand Flatten Gather "
    "Identity Log Max Min Mul Neg Pow Reciprocal ReduceMean ReduceProd ReduceSum Reshape Shape Slice Split Sqrt "
    "Squeeze Sub Sum Transpose Unsqueeze Where".split()
)
_SIZED_BY_AN_INPUT = {"ConstantOfShape": 0, "Expand": 1}


class FoldBatchNormParameters:
    """Makes constants of the BatchNorm parameters that can be computed from constants."""

    name = "fold BatchNorm parameters"

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place."""
        changed: list[Change] = []
        kept: list[Kept] = []
        folded: dict[int, gs.Constant] = {}
        for node in [node for node in graph.nodes if is_batch_norm(node)]:
            label = name_of(node)
            for index, tensor in enumerate(node.inputs[1:5], 1):
                if constant_behind(tensor) is not None:
                    continue
                if id(tensor) not in folded:
                    values = evaluate_constant(graph, tensor)
                    if isinstance(values, str):
                        kept.append(Kept(label, f"its parameter '{tensor.name}' {values}"))
                        continue
                    folded[id(tensor)] = gs.Constant(f"{tensor.name}.folded", values)
                node.inputs[index] = folded[id(tensor)]
                changed.append(Change(label, f"its parameter '{tensor.name}' is a constant now"))
        if changed:
            graph.cleanup()
        return PassResult(self.name, tuple(changed), tuple(kept))


def evaluate_constant(graph: gs.Graph, tensor: Tensor, *, max_elements: int = MAX_ELEMENTS) -> Array | str:
    """The value of a tensor that the graph computes from constants alone, or the reason why it has none.

    Args:
        graph: not changed.
        tensor: of `graph`.
        max_elements: no tensor on the way may be larger.
    """
    known = constant_behind(tensor)
    if known is not None:
        return stored_values(known)
    nodes: list[gs.Node] = []
    reason = _collect(tensor, nodes, set(), max_elements)
    for number, node in enumerate(nodes):
        if reason is None and node.op in _SIZED_BY_AN_INPUT:
            shape = node.inputs[_SIZED_BY_AN_INPUT[node.op]]
            constant = constant_behind(shape)
            sides = np.asarray(constant.values) if constant is not None else _run(graph, nodes[:number], shape)
            if isinstance(sides, str) or np.prod(sides.astype(np.float64)) > max_elements:
                reason = f"has more than {max_elements} elements"
    return reason or _run(graph, nodes, tensor)


def _collect(tensor: Tensor, nodes: list[gs.Node], seen: set[int], max_elements: int) -> str | None:
    """Puts the nodes that compute `tensor` into `nodes`, in order; returns what stands in the way."""
    if isinstance(tensor, gs.Constant):
        return f"has more than {max_elements} elements" if np.prod(tensor.shape) > max_elements else None
    if tensor.is_empty():
        return None
    if not tensor.inputs:
        return f"depends on '{tensor.name}', an input of the graph"
    node = tensor.inputs[0]
    if id(node) in seen:
        return None
    seen.add(id(node))
    if node.op not in FOLDABLE_OPERATORS or not is_standard(node):
        return f"is computed by {node.op}, which is not computed in advance"
    for needed in node.inputs:
        reason = _collect(needed, nodes, seen, max_elements)
        if reason is not None:
            return reason
    nodes.append(node)
    return None


def _run(graph: gs.Graph, nodes: list[gs.Node], output: Tensor) -> Array | str:
    """One output of some nodes that need no input."""
    from onnx.reference import ReferenceEvaluator  # here, because few files need it, and it takes its time

    try:
        model = export_subgraph(graph, nodes, [], [output])
        (values,) = ReferenceEvaluator(model).run(None, {})
    except Exception as error:  # the evaluator has no error of its own
        return f"can't be computed ({first_line(error)})"
    return np.asarray(values)
