from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import pytest
from onnx.reference import ReferenceEvaluator

from vsfix.graph_passes.cleaning.split_sequences import SplitSequences
from vsfix.graph_passes.io.model_file import export_model, import_graph

X = np.random.default_rng(0).normal(size=(2, 7, 4)).astype(np.float32)
PARTS = "a = SequenceAt (q, first)\n b = SequenceAt (q, last)\n c = ReduceSum (a, axes)\n d = ReduceSum (b, axes)\n"
INDICES = {"first": np.array(0), "last": np.array(-1), "axes": np.array([1])}
SPLITS = {
    "sizes": ("q = SplitToSequence <axis: int = 1> (x, s)", {"s": np.array([2, 4, 1])}, [2, 4, 1]),
    "a size and a rest": ("q = SplitToSequence <axis: int = 1> (x, s)", {"s": np.array(3)}, [3, 3, 1]),
    "an axis from the end": ("q = SplitToSequence <axis: int = -2> (x, s)", {"s": np.array(4)}, [4, 3]),
    "one each": ("q = SplitToSequence <axis: int = 1> (x)", {}, [1] * 7),
    "a size that is computed": ("s = Add (one, one)\n q = SplitToSequence <axis: int = 1> (x, s)", {}, [2, 2, 2, 1]),
}
STAY = {
    "the batch": ("q = SplitToSequence <axis: int = 0> (x, s)", {"s": np.array(1)}, "the side that it splits"),
    "an axis goes": (
        "u = Unsqueeze (x, axes)\n q = SplitToSequence <axis: int = 2, keepdims: int = 0> (u)",
        {},
        "its parts lose an axis",
    ),
    "sizes at run time": (
        "z = Shape <start: int = 1, end: int = 2> (x)\n h = Relu (x)\n m = ReduceMax <keepdims: int = 0> (h)\n"
        "i = Cast <to: int = 7> (m)\n j = Clip (i, one, one)\n q = SplitToSequence <axis: int = 1> (x, j)",
        {},
        "the sizes of its parts",
    ),
}


def split(body: str, weights: dict[str, np.ndarray], parse, open_model, opset: int = 18):
    """The graph and the result; both runtimes find what they found before."""
    stored = INDICES | weights | {"one": np.array(1)}
    text = f"(float[N, 7, 4] x) => (float[N, C, 4] y) {{ {body}\n {PARTS} y = Concat <axis: int = 1> (c, d) }}"
    used = {name: values for name, values in stored.items() if f", {name}" in text or f"({name}" in text}
    model = parse(text, used, opset)
    graph = import_graph(model)
    result = SplitSequences()(graph)
    assert not SplitSequences()(graph).modified
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    expected = open_model(model).run({"x": X})["y"]
    np.testing.assert_array_equal(open_model(after).run({"x": X})["y"], expected)
    np.testing.assert_allclose(ReferenceEvaluator(after).run(["y"], {"x": X})[0], expected, rtol=1e-6, atol=1e-6)
    return after.graph, result


@pytest.mark.parametrize("case", SPLITS)
def test_a_sequence_of_parts_becomes_a_split(case, parse, open_model):
    body, weights, sizes = SPLITS[case]
    graph, _ = split(body, weights, parse, open_model)
    (node,) = [node for node in graph.node if node.op_type == "Split"]
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer}
    assert stored[node.input[1]] == sizes
    assert not [node for node in graph.node if "Sequence" in node.op_type]


@pytest.mark.parametrize("case", STAY)
def test_what_is_unknown_stays_with_its_reason(case, parse, open_model):
    body, weights, reason = STAY[case]
    graph, result = split(body, weights, parse, open_model)
    assert "SplitToSequence" in [node.op_type for node in graph.node]
    assert reason in result.skipped[0].reason


def test_a_sequence_that_is_read_as_a_whole_stays(parse, open_model):
    body = "q = SplitToSequence <axis: int = 1> (x, s)\n w = ConcatFromSequence <axis: int = 1> (q)"
    body += "\n a = SequenceAt (q, first)\n y = Concat <axis: int = 1> (a, w)"
    text = f"(float[N, 7, 4] x) => (float[N, C, 4] y) {{ {body} }}"
    graph = import_graph(parse(text, {"s": np.array(3), "first": np.array(0)}))
    assert "as a whole" in SplitSequences()(graph).skipped[0].reason
