"""Activations that TensorRT's parser does not take in bfloat16, written as what it takes.

    HardSwish(x) = x HardSigmoid(x), alpha = 1/6, beta = 1/2        Mish(x) = x tanh(softplus(x))

Both are the definitions of the ONNX standard. Seen with TensorRT-RTX 1.7.1, whose parser takes some 25 other operators
of this kind in bfloat16. Price: a product that a runtime may or may not fuse again, and one more rounding.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from vsfix.graph_passes.ir.graph_pass import Change
from vsfix.graph_passes.ir.nodes import graphs_of, is_standard, name_of

_GATES = {
    "HardSwish": (("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),),
    "Mish": (("Softplus", {}), ("Tanh", {})),
}


def split_activations(graph: gs.Graph) -> list[Change]:
    """Splits every HardSwish and Mish of a graph and of the bodies in it; edits in place."""
    changes = []
    for inner in graphs_of(graph):
        for node in [node for node in inner.nodes if node.op in _GATES and is_standard(node)]:
            name = name_of(node)
            changes.append(Change(name, f"{node.op} written as a product: TensorRT takes none in bfloat16"))
            _split(inner, node)
    return changes


def _split(graph: gs.Graph, node: gs.Node) -> None:
    """Writes one activation as x gate(x); the gate's nodes stand where it stood."""
    x, place = node.inputs[0], next(index for index, other in enumerate(graph.nodes) if other is node)
    gate, nodes = x, []
    for step, (op, attrs) in enumerate(_GATES[node.op]):
        written = gs.Variable(f"{node.outputs[0].name}.gate{step}", dtype=x.dtype, shape=x.shape)
        nodes.append(gs.Node(op, attrs=dict(attrs), inputs=[gate], outputs=[written]))
        gate = written
    node.op, node.attrs = "Mul", {}
    node.inputs.append(gate)
    graph.nodes[place:place] = nodes
