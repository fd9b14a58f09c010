"""The search for silent changes, in short; at length it is benchmarks/reliability/cross_check.py."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from .reliability_scripts import reliability_scripts

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it forks"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Python 3.12 warns of a fork beside threads
]


@pytest.fixture(scope="module")
def cross_check():
    with reliability_scripts() as modules:
        modules.forked.load_libraries()
        yield modules.cross_check


def two_batch_norms() -> onnx.ModelProto:
    """A chain of two BatchNorms, a marker in front of the second."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        main (float[N, 2] x) => (float[N, 2] y) {
            a = BatchNormalization <epsilon = 0.1> (x, s, o, m, v)
            d = Dropout (a, ratio, training)
            b = BatchNormalization <epsilon = 0.1> (d, s, o, n, w)
            y = Add (b, t)
        }"""
    )
    vectors = {"s": [1, 2], "o": [0, 1], "m": [0, 0.5], "v": [1, 2], "n": [0.5, 0], "w": [2, 1], "t": [1, 1]}
    weights = {name: np.array(value, np.float32) for name, value in vectors.items()}
    weights |= {"ratio": np.array(0.5, np.float32), "training": np.array(False)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


def with_weight(name: str, values: list[float]) -> onnx.ModelProto:
    """The same with another weight, and without its marker."""
    model = two_batch_norms()
    del model.graph.node[1]
    model.graph.node[1].input[0] = "a"
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weight.CopyFrom(numpy_helper.from_array(np.array(values, np.float32), name))
    return model


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:dropout2d")  # torch's own
def test_a_repair_changes_the_statistics_that_it_names_and_the_fold_no_output(cross_check, tmp_path):
    checks = [cross_check.check_network(seed, tmp_path / str(seed)) for seed in range(6)]
    assert [check.wrong for check in checks] == [""] * 6
    assert max(check.change for check in checks) < 1e-6
    assert sum(check.state == "repaired" for check in checks) >= 2
    assert sum(check.repaired for check in checks) >= 3


def test_the_statistics_that_a_report_names_may_be_any_and_no_others(cross_check):
    source = two_batch_norms()
    assert cross_check.changed_beyond(source, with_weight("w", [2, 1]), []) == ""
    assert cross_check.changed_beyond(source, with_weight("w", [9, 9]), ["b"]) == ""
    assert cross_check.changed_beyond(source, with_weight("n", [9, 9]), ["b"]) == ""
    assert cross_check.changed_beyond(source, with_weight("w", [9, 9]), ["a"]) == (
        "outputs ['y'] depend on something that was changed"
    )
    assert cross_check.changed_beyond(source, with_weight("w", [9, 9]), [], {"w"}) == ""
    assert cross_check.changed_beyond(source, with_weight("w", [9, 9]), [], {"n"}) == (
        "outputs ['y'] depend on something that was changed"
    )
    assert "names ['c'], which the file does not have once" in cross_check.changed_beyond(source, source, ["c"])


@pytest.mark.parametrize("name", ["s", "o", "m", "v", "t"])
def test_a_weight_that_was_changed_beside_is_seen(cross_check, name):
    assert "something that was changed" in cross_check.changed_beyond(
        two_batch_norms(), with_weight(name, [3, 3]), ["b"]
    )


def test_an_attribute_or_an_edge_that_was_changed_is_seen(cross_check):
    source, epsilon, edge = two_batch_norms(), two_batch_norms(), two_batch_norms()
    epsilon.graph.node[2].attribute[0].f = 0.2
    edge.graph.node[2].input[0] = "x"
    assert "something that was changed" in cross_check.changed_beyond(source, epsilon, ["b"])
    assert "something that was changed" in cross_check.changed_beyond(source, edge, ["b"])


def test_a_wrong_fold_is_seen(cross_check, tmp_path):
    source, epsilon = two_batch_norms(), two_batch_norms()
    epsilon.graph.node[2].attribute[0].f = 0.1001
    onnx.save(source, tmp_path / "a.onnx")
    onnx.save(epsilon, tmp_path / "b.onnx")
    rng = np.random.default_rng(0)
    assert cross_check.largest_change(tmp_path / "a.onnx", tmp_path / "a.onnx", rng) == 0
    assert cross_check.largest_change(tmp_path / "a.onnx", tmp_path / "b.onnx", rng) > cross_check.LARGEST_CHANGE
