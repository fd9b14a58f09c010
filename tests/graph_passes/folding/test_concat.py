from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
import pytest
from onnx.reference import ReferenceEvaluator

from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph

TWO = """(float[N, 4, 7, 7] x) => (float[N, 6, 5, 5] y) {
    p = Conv (x, w)
    q = Conv (x, u, c)
    h = Concat <axis: int = 1> (p, q)
    y = BatchNormalization (h, g, b, m, v)
}"""
RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.normal(size=(2, 4, 3, 3)),
    "u": RNG.normal(size=(4, 4, 3, 3)),
    "c": RNG.normal(size=4),
    **{"g": RNG.uniform(-2, 2, 6), "b": RNG.normal(size=6), "m": RNG.normal(size=6), "v": RNG.uniform(0.3, 3, 6)},
}


def folded(parse, body, **weights):
    """The model, its fold, and what the pass says."""
    values = {
        name: value.astype(np.float32) if value.dtype == float else value for name, value in (WEIGHTS | weights).items()
    }
    model = parse(body, values)
    graph = import_graph(model)
    result = FoldBatchNorm()(graph)
    done = export_model(graph, model)
    onnx.checker.check_model(done, full_check=True)
    return model, done, result


def outputs(model, shape):
    x = {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}
    return ReferenceEvaluator(model).run(None, x)


def test_each_layer_that_is_joined_takes_its_own_channels(parse):
    model, done, result = folded(parse, TWO)
    assert [node.op_type for node in done.graph.node] == ["Conv", "Conv", "Concat"]
    assert result.changed[0].action == "folded through Concat into Conv 'Conv', Conv 'Conv'"
    np.testing.assert_allclose(outputs(done, (2, 4, 7, 7))[0], outputs(model, (2, 4, 7, 7))[0], rtol=1e-4, atol=1e-5)
    graph = import_graph(done)
    assert not FoldBatchNorm()(graph).modified
    g = (WEIGHTS["g"] / np.sqrt(WEIGHTS["v"].astype(np.float32) + 1e-5)).astype(np.float64)
    found = onnx.numpy_helper.to_array(next(t for t in done.graph.initializer if t.name == done.graph.node[1].input[1]))
    np.testing.assert_allclose(found, WEIGHTS["u"] * g[2:].reshape(-1, 1, 1, 1), rtol=1e-6)


def test_the_shares_in_the_wrong_order_would_be_seen(parse):
    model, done, _ = folded(parse, TWO)
    swapped = onnx.ModelProto()
    swapped.CopyFrom(done)
    swapped.graph.node[2].input[:] = list(reversed(done.graph.node[2].input))
    assert not np.allclose(outputs(swapped, (1, 4, 7, 7))[0], outputs(model, (1, 4, 7, 7))[0], atol=1e-2)


def test_products_and_views_take_their_share_too(parse):
    body = """(float[N, 4] x) => (float[N, 6] y) {
        p = Gemm <transB: int = 1> (x, w)
        t = MatMul (x, u)
        q = Add (t, c)
        h = Concat <axis: int = -1> (p, q)
        y = BatchNormalization (h, g, b, m, v)
    }"""
    model, done, _ = folded(parse, body, w=RNG.normal(size=(2, 4)), u=RNG.normal(size=(4, 4)))
    assert [node.op_type for node in done.graph.node] == ["Gemm", "MatMul", "Add", "Concat"]
    np.testing.assert_allclose(outputs(done, (3, 4))[0], outputs(model, (3, 4))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("q = Conv (x, u, c)", "k = Conv (x, u, c)\n q = Relu (k)"), "part 1 of the upstream Concat can't take its share: its input comes from Relu"),
        (("float[N, 6, 5, 5] y)", "float[N, 6, 5, 5] y, float[N, 2, 5, 5] p)"), "part 0 of the upstream Concat can't take its share: the output of the upstream Conv"),
        (("float[N, 6, 5, 5] y)", "float[N, 6, 5, 5] y, float[N, 6, 5, 5] h)"), "the output of the upstream Concat"),
        (("Concat <axis: int = 1> (p, q)", "Concat <axis: int = 1> (p, p, p)"), "can't take its share"),
    ],
    ids=["an activation", "a part that is an output", "the whole is an output", "one part three times"],
)  # fmt: skip
def test_where_a_part_can_not_take_its_share_the_batch_norm_stays_whole(parse, change, words):
    model, done, result = folded(parse, TWO.replace(*change))
    assert words in result.skipped[0].reason
    assert done.SerializeToString() == export_model(import_graph(model), model).SerializeToString()


def test_a_concat_of_positions_is_none_of_channels(parse):
    body = TWO.replace("axis: int = 1", "axis: int = 2").replace("float[N, 6, 5, 5] y", "float[N, 6, 10, 5] y")
    *_, result = folded(
        parse, body, w=RNG.normal(size=(6, 4, 3, 3)), u=RNG.normal(size=(6, 4, 3, 3)), c=RNG.normal(size=6)
    )
    assert "joins axis 2, not the channels" in result.skipped[0].reason
