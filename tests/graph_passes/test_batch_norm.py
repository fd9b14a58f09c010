from __future__ import annotations

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.batch_norm import find_batch_norms, separate_statistics
from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.model_file import export_model, import_graph

ONES = {name: np.ones(3, np.float32) for name in ("g", "b", "m", "v")}
SHARED = """(float[N, 3] x) => (float[N, 3] y) {
    h = BatchNormalization (x, g, b, m, v)
    y = BatchNormalization (h, g, b, m, v)
}"""


def test_names_are_those_of_the_modules(residual):
    assert [batch_norm.name for batch_norm in find_batch_norms(import_graph(residual))] == ["bn1", "bn2", "bn3"]


def test_names_are_unique_where_statistics_are_shared(parse):
    assert [bn.name for bn in find_batch_norms(import_graph(parse(SHARED, ONES)))] == ["h", "y"]


def test_new_statistics_of_one_reader_leave_the_other_reader_alone(parse):
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


def test_statistics_behind_identity_nodes_are_found(parse):
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


def test_parameters_that_are_computed_are_an_error(parse):
    body = "(float[N, 3] x) => (float[N, 3] y) { q = Abs (v)\n y = BatchNormalization (x, g, b, m, q) }"
    with pytest.raises(ModelError, match="constants"):
        find_batch_norms(import_graph(parse(body, ONES)))
