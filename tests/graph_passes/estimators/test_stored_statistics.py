from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.estimators.matching import TargetCollector
from vsfix.graph_passes.estimators.noise_average import NoiseAverage
from vsfix.graph_passes.estimators.samples import SampleSet
from vsfix.graph_passes.estimators.stored_statistics import compare_stored
from vsfix.graph_passes.estimators.units import batch_norm_units
from vsfix.graph_passes.model_file import import_graph

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
    chosen = SampleSet.of([{"x": rng.normal(1, 1, (samples, 12)).astype(np.float32)}])
    average = NoiseAverage(graph, chosen, open_model)
    units = batch_norm_units(graph, average.shapes)
    collector = TargetCollector(average, units, chosen, 0)
    sizes = dict(zip(chosen.first, (len(batch["x"]) for batch in chosen.batches), strict=True))
    for run in average.runs(range(8), collector.taps):
        collector.add(run.first, sizes[run.first], run.arrays)
    return compare_stored(units, collector.result())[0]


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
