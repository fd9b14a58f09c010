"""Values against ONNX Runtime, derivatives against central differences, and the nodes of a region."""

from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.estimators.activations import _FUNCTIONS, GraphOrder, find_activation
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.noise_average.taps import concrete_shapes

RNG = np.random.default_rng(14)
HEAD = "(float[N, 3] x, float[N, 3] s) => (float[N, 3] y) { r = Neg (s) z = Identity (x) "
C = {"two": np.array(2.0, np.float32), "half": np.array(0.5, np.float32), "one": np.array(1.0, np.float32)}
C |= {"c": np.array([0.5, -1.5, 2.0], np.float32), "root": np.array(np.sqrt(0.5), np.float32)}
C |= {
    "k": np.array(0.044715, np.float32),
    "p": np.array(np.sqrt(2 / np.pi), np.float32),
    "three": np.array(3.0, np.float32),
}
C |= {"six": np.array(6.0, np.float32), "low": np.array(-0.7, np.float32), "tiny": np.array(0.02, np.float32)}
PLAIN = {
    op: f"y = {op} (z)"
    for op in "Identity Neg Abs Exp Erf Relu LeakyRelu ThresholdedRelu Sigmoid Tanh Softplus Softsign Elu Celu Selu HardSigmoid HardSwish Mish Gelu".split()
}
CASES = PLAIN | {
    "Add": "y = Add (z, r)",
    "Add, channels": "y = Add (c, z)",
    "Sub": "y = Sub (c, z)",
    "Mul": "a = Mul (z, c) y = Mul (a, z)",
    "Div": "a = Exp (z) b = Add (a, one) y = Div (z, b)",
    "Pow": "y = Pow (z, three)",
    "Pow, square": "y = Pow (z, two)",
    "Pow of a constant": "y = Pow (two, z)",
    "Clip": "y = Clip (z, low, half)",
    "Clip, open below": "y = Clip (z, , half)",
    "PRelu": "y = PRelu (z, c)",
    "LeakyRelu, alpha": "y = LeakyRelu <alpha = 0.3> (z)",
    "Elu, alpha": "y = Elu <alpha = 0.4> (z)",
    "Celu, alpha": "y = Celu <alpha = 0.4> (z)",
    "HardSigmoid, alpha": "y = HardSigmoid <alpha = 0.3, beta = 0.4> (z)",
    "ThresholdedRelu, alpha": "y = ThresholdedRelu <alpha = 0.4> (z)",
    "Gelu, tanh": 'y = Gelu <approximate = "tanh"> (z)',
    "SiLU": "a = Sigmoid (z) y = Mul (z, a)",
    "GELU, erf": "a = Mul (z, root) b = Erf (a) d = Add (b, one) e = Mul (z, d) y = Mul (e, half)",
    "GELU, tanh": "a = Pow (z, three) b = Mul (a, k) d = Add (z, b) e = Mul (d, p) f = Tanh (e) g = Add (f, one) h = Mul (z, g) y = Mul (h, half)",
    "HardSwish": "a = Add (z, three) b = Clip (a, , six) d = Relu (b) e = Mul (z, d) y = Div (e, six)",
    "sum and Relu": "a = Add (z, r) y = Relu (a)",
}


def order_of(graph, shapes) -> GraphOrder:
    return GraphOrder(
        {id(node): i for i, node in enumerate(graph.nodes)}, {id(tensor) for tensor in graph.outputs}, shapes
    )


def region(parse, open_model, body, rows, axis=1, weights=None, opset=20):
    model = parse(body, weights or C, opset)
    graph = import_graph(model)
    shapes = concrete_shapes(graph, rows, open_model)
    return find_activation(graph.tensors()["z"], axis, order_of(graph, shapes)), model, graph


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_function_has_the_value_of_the_runtime_and_the_slope_of_differences(parse, open_model, case):
    x, s = RNG.normal(0, 1.3, (2, 400, 3)).astype(np.float32)
    g, model, _ = region(parse, open_model, HEAD + CASES[case] + " }", {"x": x, "s": s})
    assert g.output.name == "y"
    sides = {side.name: -s.astype(np.float64) for side in g.sides}
    with open_model(model) as runner:
        truth = runner.run({"x": x, "s": s})["y"]
    z = x.astype(np.float64)
    value, slope = g.evaluate(z, sides)
    np.testing.assert_allclose(value, truth, rtol=2e-6, atol=2e-6)
    above, below = g.evaluate(z + 1e-4, sides)[0], g.evaluate(z - 1e-4, sides)[0]
    kink = np.abs(g.evaluate(z + 1e-4, sides)[1] - g.evaluate(z - 1e-4, sides)[1]) > 0.01
    wanted = (above - below) / 2e-4
    np.testing.assert_allclose(slope[~kink], wanted[~kink], rtol=3e-3, atol=6e-3)
    if not g.is_linear and case != "Identity":
        assert kink.mean() < 0.01
        assert np.abs(1.3 * slope[~kink] - wanted[~kink]).max() > 0.02, "a planted factor must be seen"


def test_every_function_is_looked_at():
    assert set(_FUNCTIONS) - {"Swish"} <= {case.split(",")[0] for case in CASES}  # Swish: opset 24, no runtime yet


def test_the_sum_of_a_residual_block_is_part_of_the_region(parse, open_model):
    rows = {"x": np.ones((4, 3), np.float32), "s": np.ones((4, 3), np.float32)}
    g, _, _ = region(parse, open_model, HEAD + "a = Add (z, r) y = Relu (a) }", rows)
    assert ([node.op for node in g.nodes], [side.name for side in g.sides]) == (["Add", "Relu"], ["r"])
    assert not g.is_linear
    late = HEAD + "t = Exp (s) a = Add (z, t) y = Relu (a) }"  # written after z
    g, _, _ = region(parse, open_model, late, rows)
    assert g.nodes == ()


def test_a_region_that_two_tensors_leave_is_cut(parse, open_model):
    body = "(float[N, 3] x) => (float[N, 3] y) { z = Identity (x) a = Relu (z) b = Exp (a) d = Softmax (a) y = Add (b, d) }"
    g, _, _ = region(parse, open_model, body, {"x": np.ones((4, 3), np.float32)})
    assert g.output.name == "a"
    both = "(float[N, 3] x) => (float[N, 3] y) { z = Identity (x) a = Relu (z) d = Softmax (z) y = Add (a, d) }"
    g, _, _ = region(parse, open_model, both, {"x": np.ones((4, 3), np.float32)})
    assert g.output.name == "z"


def test_a_region_ends_at_an_output_of_the_graph(parse, open_model):
    body = "(float[N, 3] x) => (float[N, 3] y, float[N, 3] a) { z = Identity (x) a = Relu (z) y = Exp (a) }"
    g, _, _ = region(parse, open_model, body, {"x": np.ones((4, 3), np.float32)})
    assert g.output.name == "a"


def test_a_gate_that_depends_on_the_position_is_no_part(parse, open_model):
    body = "(float[N, 3] x, float[N, 3] s) => (float[N, 3] y) { r = Neg (s) z = Identity (x) y = Mul (z, r) }"
    g, _, _ = region(parse, open_model, body, {"x": np.ones((4, 3), np.float32), "s": np.ones((4, 3), np.float32)})
    assert g.output.name == "z"


@pytest.mark.parametrize(
    ("axis", "shape", "fits"), [(-1, (3,), True), (1, (3,), False), (1, (4, 1), True), (-1, (4, 1), False)]
)
def test_a_constant_must_lie_along_the_channels(parse, open_model, axis, shape, fits):
    body = "(float[N, 4, 3] x) => (float[N, 4, 3] y) { z = Identity (x) y = Mul (z, c) }"
    g, _, _ = region(
        parse, open_model, body, {"x": np.ones((2, 4, 3), np.float32)}, axis, {"c": np.ones(shape, np.float32)}
    )
    assert (g.output.name == "y") == fits
