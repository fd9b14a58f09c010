from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.model_file import export_model, import_graph
from vsfix.graph_passes.reestimation import exact
from vsfix.graph_passes.stream import stream

ALL = ("bn1", "bn2", "bn3")


def test_one_batch_is_the_exact_answer(residual, images, open_model):
    """With the whole set as one batch nothing is approximated; far statistics make the evidence overwhelming."""
    many = np.concatenate([images] * 20) * 3
    streamed = stream(import_graph(residual), [{"x": many}], open_model, ALL)
    truth = exact(import_graph(residual), [{"x": many}], open_model, ALL)
    for name in ALL:
        np.testing.assert_allclose(streamed[name].variance, truth[name].variance, rtol=1e-3)
        assert streamed[name].samples == len(many)


def test_small_batches_are_off_behind_the_first_batch_norm(residual, images, open_model):
    batches = [{"x": images[start : start + 4]} for start in range(0, 60, 4)]
    streamed = stream(import_graph(residual), batches, open_model, ALL)
    truth = exact(import_graph(residual), batches, open_model, ALL)
    np.testing.assert_allclose(streamed["bn1"].shift, truth["bn1"].shift, rtol=1e-5)
    assert abs(streamed["bn2"].shift / truth["bn2"].shift - 1) > 1e-3


@pytest.mark.parametrize("opset", [13, 18])
def test_layers_that_are_not_named_keep_what_they_store(parse, open_model, opset):
    body = """(float[N, 2] x) => (float[N, 2] y) {
        n = BatchNormalization (x, g, b, m, v)
        y = BatchNormalization (n, g2, b2, m2, v2)
    }"""
    weights = {name: np.ones(2, np.float32) for name in ("g", "b", "m", "v", "g2", "b2", "m2", "v2")}
    x = np.random.default_rng(0).normal(0, 5, (300, 2)).astype(np.float32)
    graph = import_graph(parse(body, weights, opset))
    (estimate,) = stream(graph, [{"x": x}], open_model, ["y"]).values()
    np.testing.assert_allclose(estimate.variance, x.astype(np.float64).var(axis=0), rtol=0.03)


def test_the_graph_is_not_changed(residual, images, open_model):
    graph = import_graph(residual)
    before = export_model(graph, residual).SerializeToString()
    stream(graph, [{"x": images}], open_model, ALL)
    assert export_model(graph, residual).SerializeToString() == before


def test_no_data_is_an_error(residual, open_model):
    with pytest.raises(DataError, match="empty"):
        stream(import_graph(residual), [], open_model, ALL)


def test_two_batch_norms_on_one_tensor(parse, open_model):
    body = """(float[N, 2] x) => (float[N, 2] z) {
        n = BatchNormalization (x, g, b, m, v)
        o = BatchNormalization (x, g2, b2, m2, v2)
        z = Add (n, o)
    }"""
    weights = {name: np.ones(2, np.float32) for name in ("g", "b", "m", "v", "g2", "b2", "m2", "v2")}
    x = np.random.default_rng(0).normal(0, 5, (300, 2)).astype(np.float32)
    found = stream(import_graph(parse(body, weights)), [{"x": x}], open_model, ["n", "o"])
    np.testing.assert_array_equal(found["n"].variance, found["o"].variance)
