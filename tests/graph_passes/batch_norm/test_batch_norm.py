from __future__ import annotations

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.batch_norm.batch_norm import (
    find_batch_norms,
    find_modules,
    require_batch_norms,
    separate_statistics,
    unreadable_batch_norms,
)
from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.io.model_file import export_model, import_graph

ONES = {name: np.ones(3, np.float32) for name in ("g", "b", "m", "v")}
SHARED = """(float[N, 3] x) => (float[N, 3] y) {
    h = BatchNormalization (x, g, b, m, v)
    y = BatchNormalization (h, g, b, m, v)
}"""


def test_names_are_those_of_the_modules(residual):
    assert [batch_norm.name for batch_norm in find_batch_norms(import_graph(residual))] == ["bn1", "bn2", "bn3"]


def test_names_are_unique_where_statistics_are_shared(parse):
    assert [bn.name for bn in find_batch_norms(import_graph(parse(SHARED, ONES)))] == ["h", "y"]


def test_new_statistics_of_one_reader_do_not_change_the_other_reader(parse):
    graph = import_graph(parse(SHARED, ONES))
    find_batch_norms(graph)[0].with_statistics(np.full(3, 5.0), np.full(3, 7.0))
    first, second = find_batch_norms(graph)
    assert (first.mean == 5).all()
    assert (first.variance == 7).all()
    assert (second.mean == 1).all()
    assert (second.variance == 1).all()


def test_one_tensor_as_scale_and_variance_is_split_on_write(parse):
    weights = {"g": np.ones(3, np.float32), "b": np.zeros(3, np.float32)}
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = BatchNormalization (x, g, b, b, g) }", weights)
    graph = import_graph(model)
    find_batch_norms(graph)[0].with_statistics(np.full(3, 5.0), np.full(3, 7.0))
    (after,) = find_batch_norms(import_graph(export_model(graph, model)))
    assert (after.gamma == 1).all()
    assert (after.beta == 0).all()
    assert (after.mean == 5).all()
    assert (after.variance == 7).all()


def test_separated_statistics_keep_their_names_when_they_are_written(parse):
    graph = import_graph(parse(SHARED, ONES))
    separate_statistics(graph)
    names = [batch_norm.name for batch_norm in find_batch_norms(graph)]
    assert names == ["h", "y"]
    for batch_norm in find_batch_norms(graph):
        batch_norm.with_statistics(np.full(3, 5.0), np.full(3, 7.0))
    assert [batch_norm.name for batch_norm in find_batch_norms(graph)] == names


def test_statistics_of_one_reader_are_not_touched_by_separation(residual):
    graph = import_graph(residual)
    before = export_model(graph, residual).SerializeToString()
    separate_statistics(graph)
    assert export_model(graph, residual).SerializeToString() == before


def test_statistics_upstream_of_identity_nodes_are_found(parse):
    body = "(float[N, 3] x) => (float[N, 3] y) { q = Identity (v)\n y = BatchNormalization (x, g, b, m, q) }"
    graph = import_graph(parse(body, ONES))
    (batch_norm,) = find_batch_norms(graph)
    batch_norm.with_statistics(np.zeros(3), np.full(3, 4.0))
    assert (find_batch_norms(graph)[0].variance == 4).all()


@pytest.mark.parametrize(("mean", "variance"), [(np.nan, 1.0), (0.0, np.inf), (0.0, -1.0), (1e39, 1.0), (0.0, 1e39)])
def test_statistics_that_are_not_finite_or_negative_are_refused(parse, mean, variance):
    graph = import_graph(parse(SHARED, ONES))
    with pytest.raises(ModelError, match="refusing"):
        find_batch_norms(graph)[0].with_statistics(np.full(3, mean), np.full(3, variance))


def test_training_form_is_an_error_that_says_what_to_do(parse):
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = BatchNormalization (x, g, b, m, v) }", ONES)
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("training_mode", 1))
    with pytest.raises(ModelError, match=r"model\.eval\(\)"):
        find_batch_norms(import_graph(model))


@pytest.mark.parametrize("is_test", [0, 1])
def test_before_opset_7_an_attribute_says_which_form_it_is(parse, is_test):
    body = f"(float[N, 3] x) => (float[N, 3] y) {{ y = BatchNormalization <is_test: int = {is_test}> (x, g, b, m, v) }}"
    graph = import_graph(parse(body, ONES, opset=6))
    if is_test:
        assert [batch_norm.name for batch_norm in find_batch_norms(graph)] == ["y"]
    else:
        with pytest.raises(ModelError, match="training form"):
            find_batch_norms(graph)


def test_a_batch_norm_that_cant_be_read_does_not_stop_the_others(parse):
    body = """(float[N, 3] x) => (float[N, 3] y) {
        q = Abs (v)
        h = BatchNormalization (x, g, b, m, q)
        y = BatchNormalization (h, g, b, m, v)
    }"""
    graph = import_graph(parse(body, ONES))
    assert [batch_norm.name for batch_norm in find_batch_norms(graph)] == ["y"]
    (unread,) = unreadable_batch_norms(graph)
    assert unread.subject == "h"
    assert unread.reason == "its parameters must be constants, but 'q' is computed by the graph"


def test_where_none_can_be_read_the_error_names_the_reason_and_the_export_that_keeps_them(parse):
    body = "(float[N, 3] x, float[3] v) => (float[N, 3] y) { y = BatchNormalization (x, g, b, m, v) }"
    weights = {name: ONES[name] for name in ("g", "b", "m")}
    with pytest.raises(ModelError, match=r"BatchNorm 'y' can't be read: .*'v' is computed.*optimize=False"):
        require_batch_norms(import_graph(parse(body, weights)))


@pytest.mark.parametrize(("body", "story"), [("Gemm (x, w)", "they were folded"), ("Relu (x)", "it never had any")])
def test_where_there_is_none_the_error_says_why_and_how_to_keep_them(parse, body, story):
    graph = import_graph(
        parse(f"(float[N, 3] x) => (float[N, 3] y) {{ y = {body} }}", {"w": np.eye(3, dtype=np.float32)})
    )
    with pytest.raises(ModelError, match=f"{story}.*vsfix export.*optimize=False") as caught:
        require_batch_norms(graph)
    assert "\n" not in str(caught.value)


def test_batch_norms_in_a_subgraph_are_reported(parse):
    body = """(float[N, 3] x, bool c) => (float[N, 3] y) {
        y = If (c) <then_branch = t () => (float[N, 3] p) { p = BatchNormalization (x, g, b, m, v) },
                    else_branch = e () => (float[N, 3] q) { q = Exp (x) }>
    }"""
    (unread,) = unreadable_batch_norms(import_graph(parse(body, ONES)))
    assert (unread.subject, "subgraph of If" in unread.reason) == ("p", True)


def test_a_statistic_for_each_position_is_reported(parse):
    each = {name: np.ones((3, 2), np.float32) for name in ONES}
    body = "(float[N, 3, 2] x) => (float[N, 3, 2] y) { y = BatchNormalization <spatial: int = 0> (x, g, b, m, v) }"
    graph = import_graph(parse(body, each, opset=8))
    assert find_batch_norms(graph) == ()
    assert "spatial = 0" in unreadable_batch_norms(graph)[0].reason


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 18, 22])
def test_every_opset_keeps_its_attributes_when_statistics_are_written(opset, parse, open_model):
    attributes = "epsilon: float = 0.0, momentum: float = 0.5" + (", spatial: int = 1" if opset < 9 else "")
    body = f"(float[N, 3, 2] x) => (float[N, 3, 2] y) {{ y = BatchNormalization <{attributes}> (x, g, b, m, v) }}"
    model = parse(body, ONES, opset)
    graph = import_graph(model)
    (batch_norm,) = find_batch_norms(graph)
    assert batch_norm.epsilon == 0
    batch_norm.with_statistics(np.full(3, 2.0), np.full(3, 4.0))
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    assert {a.name for a in after.graph.node[0].attribute} == {a.name for a in model.graph.node[0].attribute}
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    np.testing.assert_allclose(open_model(after).run({"x": x})["y"], (x - 2.0) / 2.0 + 1.0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_statistics_that_are_listed_among_the_inputs_are_taken_as_stored(ir_version, parse, open_model):
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = BatchNormalization (x, g, b, m, v) }", ONES, opset=9)
    model.ir_version = ir_version
    for name in ONES:
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3]))
    onnx.checker.check_model(model, full_check=True)
    graph = import_graph(model)
    find_batch_norms(graph)[0].with_statistics(np.full(3, 5.0), np.full(3, 7.0))
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    assert [tensor.name for tensor in after.graph.input] == ["x"]
    y = open_model(after).run({"x": np.full((1, 3), 5, np.float32)})["y"]
    np.testing.assert_array_equal(y, np.ones((1, 3), np.float32))


@pytest.mark.parametrize("opset", [14, 15, 18])
@pytest.mark.parametrize("name", ["FLOAT16", "BFLOAT16", "DOUBLE"])
def test_statistics_keep_the_type_that_they_are_stored_in(name, opset, capfd):
    code = getattr(onnx.TensorProto, name)
    model = one_batch_norm(code, code, opset)
    graph = import_graph(model)
    (batch_norm,) = find_batch_norms(graph)
    assert batch_norm.variance.tolist() == [1, 2, 3]
    batch_norm.with_statistics(np.full(3, 0.1), np.full(3, 0.3))
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    written = {tensor.name: tensor for tensor in after.graph.initializer}
    assert {tensor.data_type for tensor in written.values()} == {code}
    values = onnx.numpy_helper.to_array(written["v"]).astype(np.float64)
    np.testing.assert_allclose(values, 0.3, rtol={"FLOAT16": 5e-4, "BFLOAT16": 4e-3, "DOUBLE": 0}[name])
    assert capfd.readouterr() == ("", "")


def test_half_precision_data_with_single_precision_statistics_is_read_and_written():
    model = one_batch_norm(onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, 15)
    graph = import_graph(model)
    find_batch_norms(graph)[0].with_statistics(np.full(3, 0.1), np.full(3, 1e-7))
    after = export_model(graph, model)
    onnx.checker.check_model(after, full_check=True)
    types = {tensor.name: tensor.data_type for tensor in after.graph.initializer}
    assert types == {"g": 10, "b": 10, "m": 1, "v": 1}
    np.testing.assert_array_equal(find_batch_norms(import_graph(after))[0].variance, np.float32(1e-7))


def one_batch_norm(data: int, statistics: int, opset: int) -> onnx.ModelProto:
    """A BatchNorm over (N, 3) with gamma and beta of the type of the data."""
    types = {"g": data, "b": data, "m": statistics, "v": statistics}
    weights = [onnx.helper.make_tensor(name, code, [3], [1.0, 2.0, 3.0]) for name, code in types.items()]
    node = onnx.helper.make_node("BatchNormalization", ["x", *types], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, data, ["N", 3]) for name in "xy")
    graph = onnx.helper.make_graph([node], "g", [x], [y], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_of_two_modules_that_wait_for_each_other_only_one_is_grouped(parse):
    weights = {
        f"{module}{name}": np.arange(1, 5, dtype=np.float32) + (module == "q") for module in "pq" for name in "gbmv"
    }
    body = """(float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
        a = BatchNormalization (x, pg, pb, pm, pv) y = BatchNormalization (a, qg, qb, qm, qv)
        b = BatchNormalization (x, qg, qb, qm, qv) z = BatchNormalization (b, pg, pb, pm, pv) }"""
    assert sorted(len(module.uses) for module in find_modules(import_graph(parse(body, weights)))) == [1, 1, 2]
