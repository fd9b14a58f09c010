"""What the digest of a model sees, and what it does not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from vsfix.graph_passes.structure_digest import initializer_values, structure_digest, values_digest

GRAPH = "(float[N, 4] x) => (float[N, 6] y) { [first] h = Gemm <alpha: float = 2.0> (x, w, b)  [last] y = Relu (h) }"
WEIGHTS = {"w": np.arange(24, dtype=np.float32).reshape(4, 6), "b": np.ones(6, np.float32)}


@pytest.fixture
def digest(parse):
    def of(body=GRAPH, weights=None, free=("w",), opset=18):
        return structure_digest(parse(body, WEIGHTS | (weights or {}), opset), free)

    return of


@pytest.mark.parametrize(
    "changed",
    [
        {"body": GRAPH.replace("first", "second")},
        {"body": GRAPH.replace("2.0", "2.5")},
        {"body": GRAPH.replace("Relu", "Elu")},
        {"body": GRAPH.replace(" h", " k").replace("(h", "(k")},
        {"body": GRAPH.replace("[N, 4]", "[3, 4]")},
        {"weights": {"b": np.zeros(6, np.float32)}},
        {"weights": {"b": np.ones((1, 6), np.float32)}},
        {"weights": {"c": np.zeros(1, np.float32)}},
        {"opset": 17},
    ],
)
def test_everything_but_the_free_values_changes_the_digest(digest, changed):
    assert digest(**changed) != digest()


def test_the_free_values_do_not_change_it(digest):
    other = {"w": -WEIGHTS["w"]}
    assert digest(weights=other) == digest()
    assert digest(weights=other, free=()) != digest(free=())


def test_what_a_model_says_of_itself_is_no_part_of_it(parse):
    model = parse(GRAPH, WEIGHTS)
    before = structure_digest(model, ())
    model.producer_name, model.doc_string, model.graph.doc_string, model.graph.name = "p", "d", "g", "other"
    onnx.helper.set_model_props(model, {"vsfix.repair": "{}"})
    assert structure_digest(model, ()) == before


def test_the_way_in_which_values_are_stored_is_no_part_of_it(parse):
    model = parse(GRAPH, WEIGHTS)
    before = structure_digest(model, ())
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "b")
    tensor.CopyFrom(onnx.helper.make_tensor("b", onnx.TensorProto.FLOAT, [6], [1.0] * 6))
    assert not tensor.HasField("raw_data")
    assert structure_digest(model, ()) == before


def test_a_digest_of_values_is_of_the_numbers_in_order():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert values_digest(values) == values_digest(np.asfortranarray(values))
    assert values_digest(values) != values_digest(values.T)


def test_only_the_named_initializers_are_given(parse):
    found = initializer_values(parse(GRAPH, WEIGHTS), ["w", "absent"])
    assert list(found) == ["w"]
    np.testing.assert_array_equal(found["w"], WEIGHTS["w"])
