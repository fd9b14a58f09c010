"""The closed forms against networks that torch runs with the noise on, over many samples, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.estimators.analytic import analytic
from vsfix.graph_passes.estimators.second_moment import rectified_second_moment
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.statistics.shift import joint_variance

RNG = np.random.default_rng(0)


def statistics(prefix: str, values: torch.Tensor) -> dict[str, np.ndarray]:
    """The stored statistics of a BatchNorm whose input is `values`."""
    axes = [axis for axis in range(values.dim()) if axis != 1]
    return {
        f"{prefix}m": values.mean(dim=axes).numpy().astype(np.float32),
        f"{prefix}v": values.var(dim=axes, unbiased=False).numpy().astype(np.float32),
    }


def affine(prefix: str, channels: int) -> dict[str, np.ndarray]:
    return {
        f"{prefix}g": RNG.uniform(0.5, 1.5, channels).astype(np.float32),
        f"{prefix}b": RNG.normal(0.3, 0.5, channels).astype(np.float32),
    }


def normal(*shape: int) -> torch.Tensor:
    return torch.tensor(RNG.normal(0, 1, shape))


def test_directly_downstream_of_dropout_the_variance_is_that_without_it(parse):
    x = 0.7 + normal(200000, 3) * torch.tensor([0.5, 1.0, 2.0])
    torch.manual_seed(0)
    weights = statistics("", F.dropout(x, 0.4)) | affine("", 3) | {"r": np.float32(0.4)}
    body = "(float[N, 3] x) => (float[N, 3] y) { d = Dropout (x, r)\n y = BatchNormalization (d, g, b, m, v) }"
    (estimate,) = analytic(import_graph(parse(body, weights)), ["y"])[0].values()
    np.testing.assert_allclose(estimate.variance, x.var(dim=0).numpy(), rtol=0.05)
    assert estimate.interval is None
    assert estimate.samples == 0


def test_two_dropouts_directly_upstream_multiply(parse):
    weights = affine("", 2) | {"m": np.zeros(2, np.float32), "v": np.ones(2, np.float32), "r": np.float32(0.5)}
    body = """(float[N, 2] x) => (float[N, 2] y) {
        d = Dropout (x, r)
        e = Dropout (d, r)
        y = BatchNormalization (e, g, b, m, v)
    }"""
    (estimate,) = analytic(import_graph(parse(body, weights)), ["y"])[0].values()
    np.testing.assert_allclose(estimate.variance, 0.25, rtol=1e-12)


def test_a_channel_that_contradicts_its_closed_form_is_unchanged(parse):
    """Dropout 0.5 leaves (var - mean^2) / 2: less than a fiftieth of the variance, or nothing, can't be the truth."""
    weights = affine("", 4) | {"v": np.ones(4, np.float32), "r": np.float32(0.5)}
    weights["m"] = np.sqrt(1 - 2 * np.array([0.5, 0.03, 0.01, -0.1])).astype(np.float32)
    body = "(float[N, 4] x) => (float[N, 4] y) { d = Dropout (x, r)\n y = BatchNormalization (d, g, b, m, v) }"
    (estimate,) = analytic(import_graph(parse(body, weights)), ["y"])[0].values()
    np.testing.assert_allclose(estimate.variance, [0.5, 0.03, 1, 1], rtol=1e-5)
    assert estimate.invalid.tolist() == [False, False, True, True]
    assert estimate.shift == pytest.approx(np.sqrt(0.5 * 0.03), rel=1e-5)


@pytest.mark.parametrize(("alone", "estimated"), [(False, {"bn1", "bn2"}), (True, {"bn1"})])
def test_where_the_closed_form_must_be_all_other_noise_is_a_reason(residual, alone, estimated):
    """bn2 stands directly downstream of its own noise; that of bn1 arrives through a ReLU."""
    estimates, reasons = analytic(import_graph(residual), ["bn1", "bn2"], alone=alone)
    assert set(estimates) == estimated
    assert set(reasons.values()) == ({"noise arrives through a non-linearity too"} if alone else set())


def linear_network(parse, body: str, weight: np.ndarray, forward) -> tuple[np.ndarray, np.ndarray]:
    """The analytic variance and the true one of `y`, a BatchNorm downstream of `forward(noise(relu(affine(z))))`."""
    channels = 4
    first = affine("a_", channels) | {"a_m": np.zeros(channels, np.float32), "a_v": np.ones(channels, np.float32)}
    z = normal(4000, channels, 6, 6) if weight.ndim == 4 else normal(100000, channels)
    shape = (1, -1) + (1,) * (z.dim() - 2)
    h = F.relu(z * torch.tensor(first["a_g"]).reshape(shape) + torch.tensor(first["a_b"]).reshape(shape))
    torch.manual_seed(0)
    w = torch.tensor(weight)
    noise_on, noise_off = forward(F.dropout(h, 0.5), w), forward(h, w)
    weights = first | statistics("", noise_on) | affine("", noise_on.shape[1]) | {"w": weight.astype(np.float32)}
    (estimate,) = analytic(import_graph(parse(body, weights)), ["y"])[0].values()
    return estimate.variance, statistics("", noise_off)["v"]


CONV = """(float[N, 4, 6, 6] x) => (float[N, 6, 6, 6] y) <float[N, 4, 6, 6] d> {{
    n = BatchNormalization (x, a_g, a_b, a_m, a_v)
    r = Relu (n)
    d = Dropout (r)
    c = Conv <pads = [1, 1, 1, 1], group = {group}> (d, w)
    y = BatchNormalization (c, g, b, m, v)
}}"""


@pytest.mark.parametrize("group", [1, 2])
def test_downstream_of_a_padded_convolution(parse, group):
    weight = RNG.normal(0, 1, (6, 4 // group, 3, 3))
    found, truth = linear_network(
        parse, CONV.format(group=group), weight, lambda h, w: F.conv2d(h, w, padding=1, groups=group)
    )
    np.testing.assert_allclose(found, truth, rtol=0.03)


def test_a_border_that_is_forgotten_is_seen(parse, monkeypatch):
    from vsfix.graph_passes.estimators import linear_noise

    monkeypatch.setattr(linear_noise, "_seen", lambda node, shape: np.ones(1))
    weight = RNG.normal(0, 1, (6, 4, 3, 3))
    found, truth = linear_network(parse, CONV.format(group=1), weight, lambda h, w: F.conv2d(h, w, padding=1))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found, truth, rtol=0.03)


def test_downstream_of_a_gemm(parse):
    body = """(float[N, 4] x) => (float[N, 5] y) {
        n = BatchNormalization (x, a_g, a_b, a_m, a_v)
        r = Relu (n)
        d = Dropout (r)
        c = Gemm <transB = 1> (d, w)
        y = BatchNormalization (c, g, b, m, v)
    }"""
    found, truth = linear_network(parse, body, RNG.normal(0, 1, (5, 4)), lambda h, w: h @ w.T)
    np.testing.assert_allclose(found, truth, rtol=0.03)


def test_downstream_of_a_matmul_and_a_sum_with_a_branch_without_noise(parse):
    body = """(float[N, 4] x) => (float[N, 4] y) {
        n = BatchNormalization (x, a_g, a_b, a_m, a_v)
        r = Relu (n)
        d = Dropout (r)
        c = MatMul (d, w)
        s = Add (c, r)
        y = BatchNormalization (s, g, b, m, v)
    }"""

    def forward(h, w):
        return h @ w + forward.other

    weight = RNG.normal(0, 1, (4, 4))
    forward.other = 0  # the other branch does not change the difference; the stored variance is made without it
    found, truth = linear_network(parse, body, weight, forward)
    np.testing.assert_allclose(found, truth, rtol=0.03)


TWO = """(float[N, 4] x) => (float[N, 4] y) {
    n = BatchNormalization (x, a_g, a_b, a_m, a_v)
    r = Relu (n)
    d = Dropout (r)
    c = MatMul (d, w)
    e = Dropout (c, q)
    y = BatchNormalization (e, g, b, m, v)
}"""


def test_noise_that_arrives_through_a_map_and_other_noise_directly_both_go(parse):
    weight = RNG.normal(0, 1, (4, 4))
    first = first_layer(4)
    h = F.relu(normal(400000, 4) * torch.tensor(first["a_g"]) + torch.tensor(first["a_b"]))
    torch.manual_seed(0)
    noise_on, noise_off = F.dropout(F.dropout(h, 0.5) @ torch.tensor(weight), 0.3), h @ torch.tensor(weight)
    weights = first | statistics("", noise_on) | affine("", 4) | {"w": weight.astype(np.float32), "q": np.float32(0.3)}
    (estimate,) = analytic(import_graph(parse(TWO, weights)), ["y"])[0].values()
    truth = statistics("", noise_off)["v"]
    np.testing.assert_allclose(estimate.variance, truth, rtol=0.05)
    mapped = statistics("", F.dropout(h, 0.5) @ torch.tensor(weight))["v"]
    assert (mapped > 1.3 * truth).all(), "what comes through the map must matter"


@pytest.mark.parametrize("other", ["c = Conv (d, w)", "p = Conv (d, w)\n c = Relu (p)"])
def test_noise_that_is_added_to_what_a_map_or_a_non_linearity_made_of_it_is_refused_by_name(parse, other):
    """x + Conv(x) of one draw: the parts are correlated, and no sum of variances is right."""
    body = f"(float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{ {HEAD}\n {other}\n s = Add (c, d)\n y = BatchNormalization (s, g, b, m, v) }}"
    weights = (
        first_layer(4) | {name: np.ones(4, np.float32) for name in "gbmv"} | {"w": np.ones((4, 4, 1, 1), np.float32)}
    )
    assert analytic(import_graph(parse(body, weights)), ["y"]) == ({}, {"y": "one noise arrives along two paths"})


def test_epsilon_counts_where_the_variance_upstream_is_as_small(parse):
    """Activations of 1e-3: with epsilon 1e-5 the BatchNorm gives them a tenth of the variance that gamma says."""
    body = """(float[N, 4] x) => (float[N, 4] y) {
        n = BatchNormalization (x, a_g, a_b, a_m, a_v)
        d = Dropout (n)
        c = MatMul (d, w)
        y = BatchNormalization (c, g, b, m, v)
    }"""
    weight, x = RNG.normal(0, 1, (4, 4)), 1e-3 * normal(200000, 4)
    first = first_layer(4) | {"a_v": np.full(4, 1e-6, np.float32), "a_b": np.zeros(4, np.float32)}
    n = x * torch.tensor(first["a_g"]) / np.sqrt(1e-6 + 1e-5)
    torch.manual_seed(0)
    noise_on, noise_off = F.dropout(n, 0.5) @ torch.tensor(weight), n @ torch.tensor(weight)
    weights = first | statistics("", noise_on) | affine("", 4) | {"w": weight.astype(np.float32)}
    (estimate,) = analytic(import_graph(parse(body, weights)), ["y"])[0].values()
    np.testing.assert_allclose(estimate.variance, statistics("", noise_off)["v"], rtol=0.03)


def test_noise_through_a_non_linearity_has_a_reason_and_no_estimate(residual):
    graph = import_graph(residual)
    estimates, reasons = analytic(graph, [batch_norm.name for batch_norm in find_batch_norms(graph)])
    assert set(estimates) | set(reasons) == {"bn1", "bn2", "bn3"}
    assert not set(estimates) & set(reasons)
    assert all(reasons.values())


def test_kinds_without_a_closed_form_are_skipped(parse):
    ones = {name: np.ones(3, np.float32) for name in "gbmv"}
    body = "(float[N, 3] x) => (float[N, 3] y) { d = Dropout (x)\n y = BatchNormalization (d, g, b, m, v) }"
    graph = import_graph(parse(body, ones))
    graph.nodes[0].name = "d#vsfix.noise:alpha-dropout=0.2"
    assert analytic(graph, ["y"]) == ({}, {"y": "no closed form for alpha-dropout:0.2"})


def test_the_second_moment_of_a_rectified_gaussian(parse):
    weights = affine("", 5) | {"m": np.zeros(5, np.float32), "v": np.ones(5, np.float32)}
    graph = import_graph(
        parse("(float[N, 5] x) => (float[N, 5] y) { y = BatchNormalization (x, g, b, m, v) }", weights)
    )
    z = torch.tensor(weights["b"]) + torch.tensor(weights["g"]) * normal(2000000, 5)
    truth = F.relu(z).square().mean(dim=0).numpy()
    np.testing.assert_allclose(rectified_second_moment(find_batch_norms(graph)[0]), truth, rtol=0.01)


def test_several_noises_multiply():
    assert joint_variance([Noise.parse("dropout:0.5"), Noise.parse("dropout:0.5")]) == pytest.approx(3)


def first_layer(channels: int) -> dict[str, np.ndarray]:
    return affine("a_", channels) | {"a_m": np.zeros(channels, np.float32), "a_v": np.ones(channels, np.float32)}


HEAD = """n = BatchNormalization (x, a_g, a_b, a_m, a_v)
        r = Relu (n)
        d = Dropout (r)"""


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ('c = Conv <auto_pad = "SAME_UPPER"> (d, w)', "padding"),
        ("c = Conv <pads = [1, 1, 1, 1]> (d, w)", "padding"),
        ("e = Mul (d, two)\n c = Add (e, d)", "closed form"),
        ("e = Dropout (r)\n f = Mul (e, two)\n h = Conv (d, one)\n c = Add (h, f)", "closed form"),
    ],
)
def test_an_unknown_map_has_a_reason_and_no_estimate(parse, tail, reason):
    weights = first_layer(4) | {name: np.ones(4, np.float32) for name in "gbmv"} | {"two": np.float32(2)}
    weights |= {"w": np.ones((4, 4, 3, 3), np.float32), "one": np.ones((4, 4, 1, 1), np.float32)}
    body = f"(float[N, 4, H, W] x) => (float[N, 4, H2, W2] y) {{ {HEAD}\n {tail}\n y = BatchNormalization (c, g, b, m, v) }}"
    estimates, reasons = analytic(import_graph(parse(body, weights)), ["y"])
    assert estimates == {}
    assert reason in reasons["y"]


def test_two_dropouts_in_a_row_multiply_upstream_of_a_map(parse):
    body = """(float[N, 4] x) => (float[N, 4] y) {
        n = BatchNormalization (x, a_g, a_b, a_m, a_v)
        r = Relu (n)
        d = Dropout (r)
        e = Dropout (d)
        c = MatMul (e, w)
        y = BatchNormalization (c, g, b, m, v)
    }"""

    weight = RNG.normal(0, 1, (4, 4))
    first = first_layer(4)
    h = F.relu(normal(400000, 4) * torch.tensor(first["a_g"]) + torch.tensor(first["a_b"]))
    torch.manual_seed(0)
    noise_on, noise_off = F.dropout(F.dropout(h, 0.5), 0.5) @ torch.tensor(weight), h @ torch.tensor(weight)
    weights = first | statistics("", noise_on) | affine("", 4) | {"w": weight.astype(np.float32)}
    (estimate,) = analytic(import_graph(parse(body, weights)), ["y"])[0].values()
    np.testing.assert_allclose(estimate.variance, statistics("", noise_off)["v"], rtol=0.1)
