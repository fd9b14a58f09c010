"""The variance that noise adds, against torch: the squared weights over an image of second moments, position by position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vsfix.graph_passes.estimators.linear_noise import LinearNoise, LinearNoiseReader
from vsfix.graph_passes.io.model_file import import_graph

GAMMA, BETA = np.float32([1.5, -0.7, 0.2, 2.0]), np.float32([0.3, 0.4, -1.0, -0.2])
# Of the input of the noise: the variance of what is normalised is 1, and epsilon 1e-5.
MOMENT = GAMMA.astype(np.float64) ** 2 / (1 + 1e-5) + BETA.astype(np.float64) ** 2
S2 = 0.25  # of Dropout 0.2
HEAD = "n = BatchNormalization (x, g, b, m, v)\n d = Dropout (n, ratio)"


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def noise_of(parse, tail: str, weights, *, image="", out="", head=HEAD, marker="", rows="N") -> LinearNoise:
    """The variance that the noise adds to `h`, which `tail` computes from `d`, with noise, and `n`, without."""
    body = f"(float[{rows}, 4{image}] x) => (float[M, C{out}] y) <float[{rows}, 4{image}] d> {{ {head}\n {tail}\n y = Identity (h) }}"
    ones = {"m": np.ones(4, np.float32), "v": np.ones(4, np.float32)}
    constants = {"g": GAMMA, "b": BETA, "ratio": np.float32(0.2), "off": np.array(False)} | ones | weights
    graph = import_graph(parse(body, {name: value for name, value in constants.items() if name in body}))
    for node in graph.nodes:
        if marker and node.op == "Dropout":
            node.name = f"d#vsfix.noise:{marker}"
    return LinearNoiseReader(graph).of(graph.outputs[0])


CONVOLUTIONS = {
    "padded": ({"pads": [1, 1, 1, 1]}, {"padding": 1}),
    "strided": ({"pads": [1, 1, 1, 1], "strides": [2, 3]}, {"padding": 1, "stride": (2, 3)}),
    "dilated": ({"pads": [2, 1, 2, 1], "dilations": [2, 1]}, {"padding": (2, 1), "dilation": (2, 1)}),
    "grouped": ({"pads": [1, 1, 1, 1], "group": 2}, {"padding": 1, "groups": 2}),
    "not padded": ({"pads": [0, 0, 0, 0]}, {}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_downstream_of_a_convolution_it_is_the_mean_over_the_positions(parse, case):
    attributes, arguments = CONVOLUTIONS[case]
    weight = drawn(6, 4 // attributes.get("group", 1), 3, 3)
    text = ", ".join(f"{name} = {value}" for name, value in attributes.items())
    found = noise_of(parse, f"h = Conv <{text}> (d, w)", {"w": weight}, image=", 8, 7", out=", H, W")
    squares = torch.tensor(weight, dtype=torch.float64) ** 2
    moments = torch.tensor(MOMENT).reshape(1, 4, 1, 1).expand(1, 4, 8, 7)
    truth = S2 * F.conv2d(moments, squares, **arguments).mean((0, 2, 3))
    np.testing.assert_allclose(found.variance, truth, rtol=1e-6)


def test_padding_may_differ_from_side_to_side(parse):
    weight = drawn(3, 4, 3, 3)
    tail = "h = Conv <pads = [0, 1, 2, 0]> (d, w)"
    found = noise_of(parse, tail, {"w": weight}, image=", 5, 6", out=", H, W")
    moments = F.pad(torch.tensor(MOMENT).reshape(1, 4, 1, 1).expand(1, 4, 5, 6), (1, 0, 0, 2))
    truth = S2 * F.conv2d(moments, torch.tensor(weight, dtype=torch.float64) ** 2).mean((0, 2, 3))
    np.testing.assert_allclose(found.variance, truth, rtol=1e-6)


W = drawn(4, 3)
TRUTH = S2 * (MOMENT @ W.astype(np.float64) ** 2)


@pytest.mark.parametrize(
    ("tail", "weight", "factor"),
    [
        ("h = MatMul (d, w)", W, 1),
        ("h = Gemm (d, w)", W, 1),
        ("h = Gemm <alpha = 0.5, transB = 1> (d, w)", W.T, 0.25),
        ("p = MatMul (d, w)\n q = MatMul (n, w)\n h = Sub (p, q)", W, 1),
        ("p = MatMul (d, w)\n q = MatMul (n, w)\n h = Sum (q, p)", W, 1),
    ],
)
def test_downstream_of_a_product_it_is_the_sum_over_the_inputs(parse, tail, weight, factor):
    found = noise_of(parse, tail, {"w": np.ascontiguousarray(weight)})
    np.testing.assert_allclose(found.variance, factor * TRUTH, rtol=1e-6)
    assert not found.elementwise


def test_a_square_weight_is_not_transposed(parse):
    weight = drawn(4, 4)
    truth = S2 * (MOMENT @ weight.astype(np.float64) ** 2)
    for tail in ("h = MatMul (d, w)", "h = Gemm (d, w)"):
        np.testing.assert_allclose(noise_of(parse, tail, {"w": weight}).variance, truth, rtol=1e-6)
    np.testing.assert_allclose(
        noise_of(parse, "h = Gemm <transB = 1> (d, w)", {"w": np.ascontiguousarray(weight.T)}).variance,
        truth,
        rtol=1e-6,
    )


def test_two_noises_in_a_row_multiply(parse):
    head = f"{HEAD.replace('d =', 'e =')}\n d = Dropout (e, ratio)"
    found = noise_of(parse, "h = MatMul (d, w)", {"w": W}, head=head)
    np.testing.assert_allclose(found.variance, ((1 + S2) ** 2 - 1) / S2 * TRUTH, rtol=1e-6)
    assert len(found.sources) == 2


def test_noises_of_two_branches_add(parse):
    tail = "e = Dropout (n, ratio)\n p = MatMul (d, w)\n q = MatMul (e, w)\n h = Add (p, q)"
    np.testing.assert_allclose(noise_of(parse, tail, {"w": W}).variance, 2 * TRUTH, rtol=1e-6)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ("p = MatMul (d, s)\n h = MatMul (p, w)", "two linear maps follow each other"),
        ("e = Dropout (n, ratio)\n p = MatMul (e, s)\n q = Add (p, d)\n h = MatMul (q, w)", "two linear maps follow"),
        ("p = MatMul (d, w)\n q = MatMul (d, w)\n h = Add (p, q)", "one noise arrives along two paths"),
        (
            "p = MatMul (d, s)\n e = Dropout (p, ratio)\n h = MatMul (e, w)",
            "stands downstream of a linear map of other noise",
        ),
        ("h = Add (d, d)", "one noise arrives along two paths"),
        ("p = MatMul (d, s)\n h = Add (p, d)", "one noise arrives along two paths"),
        ("p = MatMul (d, s)\n q = Relu (p)\n h = Add (q, d)", "one noise arrives along two paths"),
        ("q = Relu (d)\n p = MatMul (d, s)\n h = Sum (q, p)", "one noise arrives along two paths"),
        ("p = MatMul (d, s)\n h = Gemm (d, s, p)", "noise reaches more than one operand of Gemm"),
        ("h = MatMul (d, d)", "noise reaches more than one operand of MatMul"),
    ],
)
def test_what_the_formula_does_not_cover_has_a_reason(parse, tail, reason):
    found = noise_of(parse, tail, {"w": W, "s": np.eye(4, dtype=np.float32)})
    assert reason in found.obstacle


@pytest.mark.parametrize(
    ("shape", "tail", "reason"),
    [
        (", 4", "h = MatMul (d, s)", "MatMul contracts another axis than the channels"),
        (", 7, 4", "h = MatMul (d, s)", "MatMul contracts another axis than the channels"),
        ("", "h = Gemm <transA = 1> (d, s)", "Gemm with transA contracts the samples"),
        ("", "p = MatMul (d, s)\n h = Add (p, wide)", "may lie along different axes"),
    ],
)
def test_a_map_along_another_axis_than_the_channels_has_no_closed_form(parse, shape, tail, reason):
    """The sides are equal throughout, so that nothing but the axes tells the right sum from a wrong one."""
    weights = {"s": drawn(4, 4), "wide": drawn(4, 4, 4)}
    out = {"": "", ", 4": ", D", ", 7, 4": ", D, E"}[shape]
    out = ", D" if "wide" in tail else out
    assert reason in noise_of(parse, tail, weights, image=shape, out=out, rows=4).obstacle


def test_what_is_repeated_along_the_positions_has_one_draw_for_many(parse):
    """A sum over taps of one draw is no sum of squares: the second map must be refused, as after a first one."""
    tail = "p = Add (d, image)\n h = Conv (p, w)"
    weights = {"image": drawn(1, 4, 5, 5), "w": drawn(3, 4, 3, 3)}
    found = noise_of(parse, tail, weights, image=", 1, 1", out=", H, W")
    assert found.obstacle == "two linear maps follow each other"


@pytest.mark.parametrize(
    ("marker", "covered"), [("uout=0.5", True), ("gaussian-dropout=0.2", True), ("feature-dropout=0.2", False)]
)
def test_only_noise_with_a_draw_for_each_element_averages_out(parse, marker, covered):
    found = noise_of(parse, "h = MatMul (d, w)", {"w": W}, marker=marker)
    assert ("share their draws" not in found.obstacle) is covered
