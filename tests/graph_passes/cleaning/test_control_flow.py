from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
import onnx.parser
import pytest
import torch

from vsfix.graph_passes.cleaning.control_flow import InlineConstantIf
from vsfix.graph_passes.io.model_file import export_model, import_graph

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def inline(body: str, open_model, **weights: np.ndarray):
    """Applies the pass; the outputs are unchanged, the checker passes, a second run is idle; returns the model and the result."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\nmain {body}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    graph = import_graph(model)
    result = InlineConstantIf()(graph)
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    before_run, after_run = open_model(model).run({"x": X}), open_model(after).run({"x": X})
    assert list(before_run) == list(after_run)
    for name in before_run:
        np.testing.assert_array_equal(after_run[name], before_run[name])
    assert not InlineConstantIf()(graph).modified
    return after, result


BRANCHES = """<then_branch = t () => (float[N, 3] p) { q = Exp (x)\n p = Abs (q) },
               else_branch = e () => (float[N, 3] p) { q = Neg (x)\n p = Relu (q) }>"""


@pytest.mark.parametrize(("taken", "operators"), [(True, ["Exp", "Abs"]), (False, ["Neg", "Relu"])])
def test_the_taken_branch_replaces_the_if(taken, operators, open_model):
    after, result = inline(
        f"(float[N, 3] x) => (float[N, 3] y) {{ y = If (c) {BRANCHES} }}", open_model, c=np.array(taken)
    )
    assert [node.op_type for node in after.graph.node] == [*operators, "Identity"]
    assert result.changed[0].subject == "y"


def test_a_condition_downstream_of_not_and_cast_is_constant_too(open_model):
    body = f"(float[N, 3] x) => (float[N, 3] y) {{ k = Cast <to: int = 9> (c)\n n = Not (k)\n y = If (n) {BRANCHES} }}"
    after, _ = inline(body, open_model, c=np.array(1.0, np.float32))
    assert "Neg" in [node.op_type for node in after.graph.node]


def test_names_that_are_taken_get_a_number(open_model):
    body = f"(float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {{ y = If (c) {BRANCHES}\n z = If (c) {BRANCHES} }}"
    after, _ = inline(body, open_model, c=np.array(True))
    names = [name for node in after.graph.node for name in node.output]
    assert len(set(names)) == len(names)


def test_nested_branches_are_inlined_and_inner_weights_come_along(open_model):
    body = """(float[N, 3] x) => (float[N, 3] y) {
        y = If (c) <then_branch = t () => (float[N, 3] p) {
            w = Constant <value = float[1] {2.0}> ()
            a = Mul (x, w)
            p = If (c) <then_branch = u () => (float[N, 3] r) { r = Add (a, w) }, else_branch = v () => (float[N, 3] s) { s = Exp (a) }>
        }, else_branch = e () => (float[N, 3] q) { q = Neg (x) }>
    }"""
    after, result = inline(body, open_model, c=np.array(True))
    assert "If" not in [node.op_type for node in after.graph.node]
    assert len(result.changed) == 2


def test_a_branch_that_hands_out_an_outer_tensor_twice(open_model):
    body = """(float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
        a = Abs (x)
        y, z = If (c) <then_branch = t () => (float[N, 3] a1, float[N, 3] a2) { a1 = Identity (a)\n a2 = Identity (a1) },
                       else_branch = e () => (float[N, 3] q, float[N, 3] r) { q = Neg (x)\n r = Exp (x) }>
    }"""
    after, _ = inline(body, open_model, c=np.array(True))
    assert {node.op_type for node in after.graph.node} == {"Abs", "Identity"}


def test_a_condition_that_is_computed_stays_with_a_reason(open_model):
    body = f"""(float[N, 3] x) => (float[N, 3] y) {{
        s = ReduceMax <keepdims: int = 0> (x)\n c = Cast <to: int = 9> (s)\n y = If (c) {BRANCHES}
    }}"""
    _, result = inline(body, open_model)
    assert not result.modified
    assert result.skipped[0].reason == "its condition is computed at run time"


def test_a_constant_if_in_a_subgraph_is_inlined_there(open_model):
    body = f"""(float[N, 3] x) => (float[N, 3] y) {{
        s = ReduceMax <keepdims: int = 0> (x)
        k = Cast <to: int = 9> (s)
        y = If (k) <then_branch = g () => (float[N, 3] h) {{ h = If (c) {BRANCHES} }}, else_branch = i () => (float[N, 3] j) {{ j = Neg (x) }}>
    }}"""
    after, result = inline(body, open_model, c=np.array(True))
    assert len(result.changed) == 1
    assert [node.op_type for node in after.graph.node] == ["ReduceMax", "Cast", "If"]


class Switched(torch.nn.Module):
    """Chooses a branch by a buffer, which an export makes an initializer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("flag", torch.tensor(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(self.flag > 2):  # noqa: SIM108 (an expression would be traced another way)
            x = torch.exp(x)
        else:
            x = torch.relu(x) + 1
        return x


def test_the_export_of_a_scripted_module_is_inlined(open_model):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.script(Switched())
        torch.onnx.export(module, (torch.tensor(X),), buffer, dynamo=False, input_names=["x"])
    exported = onnx.load_from_string(buffer.getvalue())
    assert "If" in [node.op_type for node in exported.graph.node]
    graph = import_graph(exported)
    assert InlineConstantIf()(graph).modified
    after = export_model(graph, exported)
    assert "If" not in [node.op_type for node in after.graph.node]
    (found,) = open_model(after).run({"x": X}).values()
    np.testing.assert_allclose(found, np.exp(X), rtol=1e-6)
