from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, ModelError
from vsfix.graph_passes.ir.runtime import Runner
from vsfix.pipeline.backends.reference_runner import ReferenceRunner

PRODUCT = "(float[N, 2] x) => (float[N, 2] y) { y = MatMul (x, w) }"


def test_it_computes_what_numpy_does(parse):
    w = np.array([[1, 2], [3, -4]], np.float32)
    x = np.array([[1, 1], [0.5, -2]], np.float32)
    runner: Runner = ReferenceRunner(parse(PRODUCT, {"w": w}))
    with runner:
        np.testing.assert_array_equal(runner.run({"x": x})["y"], x @ w)


def test_the_shape_is_checked(parse):
    runner = ReferenceRunner(parse(PRODUCT, {"w": np.eye(2, dtype=np.float32)}))
    with pytest.raises(DataError, match=r"float32 \(\?, 2\), but float32 \(2, 3\)"):
        runner.run({"x": np.ones((2, 3), np.float32)})


def test_an_output_never_shares_the_memory_of_an_input(parse):
    x = np.ones(3, np.float32)
    output = ReferenceRunner(parse("(float[N] x) => (float[N] y) { y = Identity (x) }", {})).run({"x": x})["y"]
    x[:] = 7
    assert output.tolist() == [1, 1, 1]


def test_a_failure_is_one_line(parse):
    runner = ReferenceRunner(parse("(float[N] x, float[M] z) => (float[K] y) { y = Add (x, z) }", {}))
    with pytest.raises(ModelError, match="reference"):
        runner.run({"x": np.ones(2, np.float32), "z": np.ones(3, np.float32)})


def test_an_unknown_operator_is_refused(residual):
    residual.graph.node[0].op_type = "Convolution"
    with pytest.raises(ModelError, match="Convolution"):
        ReferenceRunner(residual)
