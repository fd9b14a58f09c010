from __future__ import annotations

import onnx
import onnx.helper
import onnx.parser
import pytest

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.io.local_functions import require_inlinable
from vsfix.graph_passes.io.model_file import read_model


def doubling(count: int, innermost: str = "Relu", domain: str = "") -> onnx.ModelProto:
    """A model of functions that each call the next one twice; the innermost has one node."""
    functions = [
        f'<domain: "local", opset_import: ["" : 18, "local" : 1]> f{i} (a) => (b) '
        f"{{ t = local.f{i + 1} (a)  b = local.f{i + 1} (t) }}"
        for i in range(count)
    ]
    node = f"{domain}{innermost}"
    functions.append(
        f'<domain: "local", opset_import: ["" : 18, "local" : 1]> f{count} (a) => (b) {{ b = {node} (a) }}'
    )
    graph = "main (float[N, 4] x) => (float[N, 4] y) { y = local.f0 (x) }"
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18, "local" : 1]>\n{graph}\n' + "\n".join(functions)
    )


def test_functions_that_unfold_to_a_few_nodes_are_inlined(tmp_path):
    onnx.save(doubling(4), tmp_path / "m.onnx")
    assert [node.op_type for node in read_model(tmp_path / "m.onnx").graph.node] == ["Relu"] * 16


@pytest.mark.parametrize("count", [40, 2000])
def test_functions_that_unfold_to_far_more_than_the_file_are_refused(tmp_path, count):
    onnx.save(doubling(count), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=rf"^{tmp_path}/m\.onnx: .*unfold to over 100 times its size"):
        read_model(tmp_path / "m.onnx")


def test_a_large_constant_counts_at_every_call(tmp_path):
    model = doubling(10)
    values = onnx.helper.make_tensor("v", onnx.TensorProto.UINT8, [1 << 20], bytes(1 << 20), raw=True)
    model.functions[-1].node.append(onnx.helper.make_node("Constant", [], ["unused"], value=values))
    with pytest.raises(ModelError, match="over 100 times"):
        require_inlinable(model)


def test_calls_in_subgraphs_count_too():
    model = doubling(40)
    call = model.graph.node.pop()
    body = onnx.helper.make_graph([call], "body", [], [onnx.ValueInfoProto(name="y")])
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body))
    with pytest.raises(ModelError, match="over 100 times"):
        require_inlinable(model)


def test_functions_that_call_each_other_are_named_in_their_order():
    with pytest.raises(ModelError, match=r"call themselves without end: .*local::f1 -> local::f2 -> local::f3"):
        require_inlinable(doubling(3, "f1", "local."))
