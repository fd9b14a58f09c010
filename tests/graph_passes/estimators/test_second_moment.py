"""E[x^2] downstream of a BatchNorm, against quadrature of the Gaussian that it is taken for."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.estimators.second_moment import second_moment
from vsfix.graph_passes.io.model_file import import_graph

GAMMA = np.array([1.5, -0.7, 0.2, -2.0, 0.5])
BETA = np.array([0.3, 0.4, -1.0, -0.2, 3.0])


def moment_of(parse, tail: str, gamma=GAMMA, beta=BETA, variance=3.0):
    """E[x^2] of `y`, which `tail` makes of the output `n` of a BatchNorm."""
    weights = {"g": gamma, "b": beta, "m": np.ones(len(gamma)), "v": np.full(len(gamma), variance)}
    body = f"(float[N, {len(gamma)}] x) => (float[N, {len(gamma)}] y) {{ n = BatchNormalization (x, g, b, m, v)\n {tail} }}"
    graph = import_graph(parse(body, {name: value.astype(np.float32) for name, value in weights.items()}))
    return second_moment(graph.outputs[0], {id(found.node): found for found in find_batch_norms(graph)})


def integral(of, gamma: float, beta: float) -> float:
    density = scipy.stats.norm(beta, abs(gamma)).pdf
    reach = 12 * abs(gamma)
    value, _ = scipy.integrate.quad(lambda z: of(z) ** 2 * density(z), beta - reach, beta + reach, points=[0, beta])
    return value


TAILS = {
    "rectified": ("r = Relu (n)\n y = Identity (r)", lambda z: max(z, 0.0)),
    "as it is": ("y = Identity (n)", lambda z: z),
    "rectified, with noise in between": ("d = Dropout (n)\n r = Relu (d)\n y = Dropout (r)", lambda z: max(z, 0.0)),
}


@pytest.mark.parametrize("variance", [3.0, 1e-5, 1e-7])
@pytest.mark.parametrize("case", TAILS)
def test_the_second_moment_is_the_integral(parse, case, variance):
    """Of what epsilon, 1e-5, leaves of the variance: half of it, or a hundredth."""
    tail, of = TAILS[case]
    variance = float(np.float32(variance))
    deviations = np.float32(GAMMA).astype(np.float64) * np.sqrt(variance / (variance + float(np.float32(1e-5))))
    truth = [integral(of, *pair) for pair in zip(deviations, np.float32(BETA).astype(np.float64), strict=True)]
    np.testing.assert_allclose(moment_of(parse, tail, variance=variance), truth, rtol=1e-6, atol=1e-12)


def test_a_channel_whose_input_never_varies_is_what_it_is_shifted_to(parse):
    np.testing.assert_allclose(moment_of(parse, "y = Identity (n)", variance=0.0), np.float32(BETA) ** 2, rtol=1e-6)


def test_a_channel_without_a_deviation_is_what_it_is_shifted_to(parse):
    found = moment_of(parse, "y = Relu (n)", np.zeros(3), np.array([2.0, -2.0, 0.0]))
    np.testing.assert_array_equal(found, [4.0, 0.0, 0.0])


@pytest.mark.parametrize("tail", ["y = Abs (n)", "r = Relu (n)\n y = Add (r, r)"])
def test_downstream_of_anything_else_it_is_unknown(parse, tail):
    assert moment_of(parse, tail) is None
