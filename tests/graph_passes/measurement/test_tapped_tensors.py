from __future__ import annotations

import numpy as np
import onnx
import onnx.reference

from vsfix.graph_passes.measurement.tapped_tensors import inner_tensors, tap_tensors


def test_the_float_tensors_stand_in_the_order_of_computation(residual):
    found = inner_tensors(residual)
    assert [tensor.name for tensor in found] == "c1 d1 n1 r1 c2 d2 n2 r2 c3 s n3 r3 p f y".split()
    assert {tensor.name: tensor.operator for tensor in found}["n2"] == "BatchNormalization"


def test_whole_numbers_and_masks_are_no_float_tensors(parse):
    body = """(float[N, 3] x) => (int64[N, 1] y) {
        h = Relu (x)
        b = Greater (h, x)
        f = Cast <to = 10> (h)
        y = ArgMax <axis = 1> (f)
    }"""
    assert [tensor.name for tensor in inner_tensors(parse(body, {}))] == ["h", "f"]


def test_a_tapped_model_gives_the_tensors_that_the_whole_one_computes(residual, images, open_model):
    tapped = tap_tensors(residual, {"n2", "r3", "y"})
    onnx.checker.check_model(residual)  # which was not changed
    assert [output.name for output in residual.graph.output] == ["y"]
    with open_model(tapped) as runner:
        found = runner.run({"x": images})
    assert list(found) == ["n2", "r3", "y"]
    reference = onnx.reference.ReferenceEvaluator(residual).run(None, {"x": images}, intermediate=True)
    for name, values in found.items():
        np.testing.assert_allclose(values, reference[name], rtol=2e-4, atol=2e-5)
