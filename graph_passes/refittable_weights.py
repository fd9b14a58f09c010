"""The form of a graph in which a repair changes nothing but the values of named weights.

A runtime knows weights by the names of initializers, and what it makes of a BatchNorm by no name at all. So every
BatchNorm goes into the linear layer in front or behind, and one that has none becomes a product and a sum with weights
of their own, Y = g X + s. The original and the repaired network then have the same nodes and the same names, and so has
a file in which some of the BatchNorms were folded before.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from .batch_norm import stored_values
from .deployment import deployment_passes
from .fold_batch_norm import FoldBatchNorm
from .fold_constants import FoldConstants
from .graph_pass import GraphPass
from .graph_tree import GraphTree
from .linear_layer import LINEAR_OPERATORS, read_linear_layer
from .nodes import is_standard, name_of
from .recompose_batch_norm import RecomposeBatchNorm
from .remove_identities import RemoveIdentities, RemoveMarkers
from .tensors import is_graph_output

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def refit_passes() -> list[GraphPass]:
    """The passes that bring any graph into this form, in the order in which they must run.

    The first fold is the one of a repaired file; the second meets only what the first has left.
    """
    return [
        *deployment_passes(),
        RecomposeBatchNorm(),
        FoldConstants(),
        RemoveMarkers(),
        RemoveIdentities(),
        FoldBatchNorm(),
        FoldBatchNorm(residual="affine"),
    ]


def refittable_weights(graph: gs.Graph) -> tuple[str, ...]:
    """The initializers of the main graph that a fold of a BatchNorm can write, by name, in the order of the graph.

    Those are the weights and biases of linear layers, and the factors and summands of what a BatchNorm without one
    became.
    """
    tree = GraphTree(graph)
    found = (constant for node in graph.nodes for constant in _weights_of(tree, node))
    kept = (constant for constant in found if not is_graph_output(graph, constant) and not constant.inputs)
    return tuple(dict.fromkeys(str(constant.name) for constant in kept if _is_float(constant)))


def quantized_node(graph: gs.Graph) -> str | None:
    """The name of a node that quantises, or None: the scales there belong to the values of the weights."""
    for node in GraphTree(graph).nodes():
        if node.op in _QUANTIZERS:
            return name_of(node)
    return None


def _weights_of(tree: GraphTree, node: gs.Node) -> Iterator[gs.Constant]:
    """The constants of one node and of the Add behind it."""
    if not is_standard(node):
        return
    if node.op in LINEAR_OPERATORS:
        layer = read_linear_layer(tree, node)
        if not isinstance(layer, str):
            yield layer.weight
            yield from (bias.constant for bias in layer.biases if bias.constant is not None)
    elif node.op == "Mul" and (pair := _affine_pair(tree, node)) is not None:
        yield from pair


def _affine_pair(tree: GraphTree, mul: gs.Node) -> tuple[gs.Constant, gs.Constant] | None:
    """g and s, each of shape (C, 1, ..., 1), where a Mul and the Add behind it are g X + s."""
    scale, product = mul.inputs[1], mul.outputs[0]
    if not isinstance(scale, gs.Constant) or tree.obstacle(product, "") is not None:
        return None
    add = product.outputs[0]
    if add.op != "Add" or not is_standard(add) or add.inputs[0] is not product:
        return None
    shift = add.inputs[1]
    if not isinstance(shift, gs.Constant) or tuple(shift.shape) != tuple(scale.shape):
        return None
    by_channel = len(scale.shape) > 0 and int(np.prod(scale.shape)) == scale.shape[0]
    return (scale, shift) if by_channel else None


def _is_float(constant: gs.Constant) -> bool:
    """Whether a constant holds floating point of any width."""
    return stored_values(constant).dtype.name in ("float16", "bfloat16", "float32", "float64")
