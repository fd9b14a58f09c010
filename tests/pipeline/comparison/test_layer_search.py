from __future__ import annotations

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.pipeline.comparison.layer_search import TappableModel, search_layers


def changed(model, name, factor):
    """A copy with one weight scaled."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(tensor for tensor in copy.graph.initializer if tensor.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(factor), name))
    return copy


@pytest.fixture
def search(residual, images, open_model):
    def run(candidate, reference=residual, min_snr_db=80.0):
        sides = (TappableModel(name, model, open_model) for name, model in (("a", reference), ("b", candidate)))
        return search_layers(*sides, {"x": images[:4]}, min_snr_db)

    return run


@pytest.mark.parametrize(
    ("weight", "tensor"), [("conv1.weight", "c1"), ("bn2.running_var", "n2"), ("bn3.bias", "n3"), ("fc.bias", "y")]
)
def test_the_first_layer_that_differs_is_the_one_that_was_changed(search, residual, weight, tensor):
    found = search(changed(residual, weight, 1.3))
    assert (found.first.tensor, found.reason, found.samples) == (tensor, "", 4)
    assert all(row.snr_db > 100 for row in found.rows[: found.rows.index(found.first)])
    assert found.worst.snr_db == min(row.snr_db for row in found.rows) <= found.first.snr_db


def test_the_error_of_a_row_is_that_of_the_tensor(search, residual):
    row = search(changed(residual, "conv1.weight", 1.01)).rows[0]
    assert (row.tensor, row.operator) == ("c1", "Conv")
    assert row.snr_db == pytest.approx(40, abs=1e-3)
    assert row.max_rel == pytest.approx(0.01, rel=1e-3)


def test_a_folded_graph_is_searched_where_it_has_the_tensors_of_the_whole_one(search, residual):
    graph = import_graph(changed(residual, "bn2.weight", 2))
    RemoveMarkers()(graph)
    FoldBatchNorm()(graph)
    found = search(export_model(graph, residual))
    names = {row.tensor for row in found.rows}
    assert {"n1", "n2", "s"} <= names
    assert "d1" not in names
    assert (found.first.tensor, found.first.operator) == ("n2", "Conv")
    assert str(found).startswith(f"layers: the first that differs is '{found.first.node}' (Conv, ")


def test_equal_models_have_no_layer_that_differs(search, residual):
    found = search(residual)
    assert (found.first, len(found.rows)) == (None, 15)
    assert "none of 15 is below 80 dB" in str(found)


def test_models_without_a_tensor_in_common_say_so(search, parse):
    other = parse("(float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] z) { z = Relu (x) }", {})
    found = search(other)
    assert (found.rows, found.worst) == ((), None)
    assert "no tensor in common" in found.reason


def test_a_tensor_of_another_shape_is_not_compared(search, parse):
    reference = parse("(float[N, 3, 8, 8] x) => (float[N, M] y) { h = Flatten (x)  y = Relu (h) }", {})
    candidate = parse("(float[N, 3, 8, 8] x) => (float[N, M] y) { h = Relu (x)  y = Flatten (h) }", {})
    assert [row.tensor for row in search(candidate, reference).rows] == ["y"]


def test_a_model_that_does_not_run_ends_the_search_with_its_reason(residual, images, open_model):
    def refuse(model):
        raise ModelError("no such operator")

    sides = TappableModel("a", residual, open_model), TappableModel("b", residual, refuse)
    found = search_layers(*sides, {"x": images[:2]}, 80)
    assert found.reason == "the tapped models do not run: no such operator"
