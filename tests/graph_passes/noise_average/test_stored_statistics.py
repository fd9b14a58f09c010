from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.noise_average.stored_statistics import compare_stored, measure_noisy

BODY = """(float[N, 12] x) => (float[N, 8] y) {
    h = MatMul (x, w) d = Dropout (h, ratio, off)
    n = BatchNormalization (d, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var") y = Relu (n) }"""


def compared(parse, open_model, samples: int, variance: float = 1.0, move: float = 0.0, seed: int = 0):
    """One BatchNorm whose stored statistics are the closed form of X = a h / p, times and plus something."""
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 0.4, (12, 8))
    mean, v = w.sum(axis=0), (w**2).sum(axis=0)  # x ~ N(1, 1)
    var = (mean**2 + v) / 0.5 - mean**2
    weights = {
        "w": w.astype(np.float32), "ratio": np.array(0.5, np.float32), "off": np.array(False),
        "bn.weight": rng.uniform(-1.5, 1.5, 8).astype(np.float32), "bn.bias": rng.normal(size=8).astype(np.float32),
        "bn.running_mean": (mean + move * np.sqrt(var)).astype(np.float32),
        "bn.running_var": (variance * var).astype(np.float32),
    }  # fmt: skip
    graph = import_graph(parse(BODY, weights))
    x = rng.normal(1, 1, (samples, 12)).astype(np.float32)
    parts = [{"x": part} for part in np.array_split(x, -(-samples // 64))]
    return compare_stored(graph, measure_noisy(graph, parts, open_model, seed))[0]


@pytest.mark.parametrize("samples", [32, 100, 500])
def test_true_statistics_pass(parse, open_model, samples):
    for seed in range(5):
        found = compared(parse, open_model, samples, seed=seed)
        assert not found.differs
        assert found.ratio < 1.2
        assert found.offset < 0.2


@pytest.mark.parametrize(("variance", "move"), [(2.0, 0.0), (0.5, 0.0), (1.0, 0.8), (1.0, -0.8)])
def test_a_factor_of_two_and_moved_means_are_named(parse, open_model, variance, move):
    for seed in range(3):
        found = compared(parse, open_model, 500, variance, move, seed)
        assert found.name == "bn"
        assert found.differs
        assert (found.ratio > 1.5) == (variance != 1)
        assert (found.offset > 0.5) == (move != 0)


def test_few_samples_say_nothing(parse, open_model):
    assert not any(compared(parse, open_model, 4, 2.0, seed=seed).differs for seed in range(5))
