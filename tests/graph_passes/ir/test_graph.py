from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.ir.graph import redirect_readers

BODY = """(float[N] x) => (float[N] y, float[N] z) {
    a = Relu (x)
    b = Mul (a, a)
    y = Add (b, a)
    z = Neg (a)
}"""


@pytest.mark.parametrize(
    ("named", "left"), [(None, []), (["Mul"], ["Add", "Neg"]), (["Add", "Neg"], ["Mul", "Mul"]), ([], "Mul Mul Add Neg".split())]
)  # fmt: skip
def test_readers_are_redirected_wherever_they_read(parse, named, left):
    graph = import_graph(parse(BODY, {}))
    old, new = graph.nodes[0].outputs[0], gs.Variable("other")
    readers = None if named is None else [node for node in graph.nodes if node.op in named]
    redirect_readers(old, new, readers)
    assert [node.op for node in old.outputs] == left
    assert len(new.outputs) == 4 - len(left)
    assert [node.op for node in graph.nodes for tensor in node.inputs if tensor is old] == left
