from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.estimators import exact, paired
from vsfix.graph_passes.measurement import MeasurementConfig, measure
from vsfix.graph_passes.model_file import import_graph
from vsfix.graph_passes.noise import Noise
from vsfix.graph_passes.repair_statistics import RepairStatistics

ALL = ("bn1", "bn2", "bn3")


def batches(x: np.ndarray, size: int = 60) -> list[dict[str, np.ndarray]]:
    return [{"x": x[start : start + size]} for start in range(0, len(x), size)]


def test_exact_takes_what_was_measured(residual, images, open_model):
    graph = import_graph(residual)
    measured = measure(graph, batches(images), open_model, MeasurementConfig(ALL))
    for name, estimate in exact(graph, batches(images), open_model, ALL).items():
        np.testing.assert_array_equal(estimate.mean, measured[name].mean)
        np.testing.assert_array_equal(estimate.variance, measured[name].variance)


def test_exact_leaves_the_layers_that_were_not_named(residual, images, open_model):
    estimates = exact(import_graph(residual), batches(images), open_model, ["bn2"])
    assert list(estimates) == ["bn2"]


def trained_statistics(residual, open_model, population):
    """Stores in `residual` what training with its noise over a whole population would have stored."""
    graph = import_graph(residual)
    on = measure(graph, batches(population), open_model, MeasurementConfig(ALL, noise_seed=99))
    for batch_norm in find_batch_norms(graph):
        batch_norm.with_statistics(on[batch_norm.name].mean, on[batch_norm.name].variance)
    return graph


def test_paired_with_few_samples_finds_what_exact_finds_with_the_population(residual, open_model):
    rng = np.random.default_rng(5)
    population = rng.normal(0.3, 1.2, (3000, 3, 8, 8)).astype(np.float32)
    graph = trained_statistics(residual, open_model, population)
    truth = exact(graph, batches(population, 500), open_model, ALL)
    few = batches(rng.normal(0.3, 1.2, (24, 3, 8, 8)).astype(np.float32))
    estimates = paired(graph, few, open_model, ALL, seed=0)
    alone = exact(graph, few, open_model, ALL)
    for name in ALL:
        stored = next(bn for bn in find_batch_norms(graph) if bn.name == name)
        np.testing.assert_allclose(estimates[name].variance, truth[name].variance, rtol=0.08)
        np.testing.assert_allclose(
            estimates[name].mean, truth[name].mean, atol=0.05 * np.sqrt(truth[name].variance.max())
        )
        if name in ("bn1", "bn2"):
            assert (stored.variance > 1.3 * truth[name].variance).all(), "the damage must be there to be repaired"
    error = [
        np.mean([np.abs(np.log(found[name].variance / truth[name].variance)).mean() for name in ALL])
        for found in (estimates, alone)
    ]
    assert error[0] < error[1], "the pairing must beat re-estimation on the same few samples"


def test_paired_without_noise_keeps_every_statistic_to_the_bit(residual, images, open_model):
    for initializer in residual.graph.initializer:
        if initializer.name == "ratio":
            initializer.raw_data = np.array(0.0, dtype=np.float32).tobytes()
    graph = import_graph(residual)
    estimates = paired(graph, batches(images), open_model, ALL, seed=0, repeats=1)
    assert not RepairStatistics(estimates, {}).__call__(graph).modified


def test_paired_on_the_mistaken_noise_is_seen(residual, images, open_model):
    """Half the ratio gives another answer by far more than the tolerance of the test above."""
    right = paired(import_graph(residual), batches(images), open_model, ["bn1"], seed=0)
    for initializer in residual.graph.initializer:
        if initializer.name == "ratio":
            initializer.raw_data = np.array(0.25, dtype=np.float32).tobytes()
    wrong = paired(import_graph(residual), batches(images), open_model, ["bn1"], seed=0)
    assert (wrong["bn1"].variance > 1.3 * right["bn1"].variance).all()


def test_paired_meets_the_closed_form_directly_behind_dropout(residual, images, open_model):
    """v = var * Var_off / ((c^2 + Var_off) / p - c^2) with c the mean of the input: the first row of the paper."""
    graph = import_graph(residual)
    off = measure(graph, batches(images), open_model, MeasurementConfig(ALL))["bn1"]
    stored = find_batch_norms(graph)[0]
    p = 1 / (1 + Noise.parse("dropout:0.5").variance)
    closed_form = stored.variance * off.variance / ((off.mean**2 + off.variance) / p - off.mean**2)
    estimate = paired(graph, batches(images), open_model, ["bn1"], seed=1, repeats=32)["bn1"]
    np.testing.assert_allclose(estimate.variance, closed_form, rtol=0.01)


def test_a_constant_channel_keeps_its_statistics(residual, images, open_model):
    for initializer in residual.graph.initializer:
        if initializer.name == "conv1.weight":
            weight = np.frombuffer(initializer.raw_data, np.float32).reshape(6, 3, 3, 3).copy()
            weight[4] = 0
            initializer.raw_data = weight.tobytes()
    graph = import_graph(residual)
    stored = find_batch_norms(graph)[0]
    for method in (exact, lambda *args: paired(*args, seed=0)):
        estimate = method(graph, batches(images), open_model, ["bn1"])["bn1"]
        assert estimate.kept.tolist() == [False, False, False, False, True, False]
        assert estimate.variance[4] == stored.variance[4]
        assert estimate.mean[4] == stored.mean[4]
        assert np.isfinite(estimate.variance).all()


def test_what_follows_a_kept_channel_is_measured_behind_what_it_keeps(parse, open_model):
    """Channel 0 is constant, so the first BatchNorm keeps it; the second must see what will be deployed."""
    body = """(float[N, 2] x) => (float[N, 2] y) {
        n = BatchNormalization (x, g, b, m, v)
        r = Relu (n)
        h = MatMul (r, w)
        y = BatchNormalization (h, g2, b2, m2, v2)
    }"""
    weights = {name: np.ones(2, np.float32) for name in ("g", "b", "m", "v", "g2", "b2", "m2", "v2")}
    weights |= {"m": np.zeros(2, np.float32), "w": np.array([[2, -1], [0.5, 1]], np.float32)}
    x = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    x[:, 0] = 5
    graph = import_graph(parse(body, weights))
    estimates = exact(graph, [{"x": x}], open_model, ["n", "y"])
    assert estimates["n"].kept.tolist() == [True, False]
    deployed = (x.astype(np.float64) - estimates["n"].mean) / np.sqrt(estimates["n"].variance + 1e-5) + 1
    truth = np.maximum(deployed, 0) @ weights["w"].astype(np.float64)
    np.testing.assert_allclose(estimates["y"].mean, truth.mean(0), rtol=1e-5)
    np.testing.assert_allclose(estimates["y"].variance, truth.var(0), rtol=1e-5)


@pytest.mark.parametrize("k", [0.25, 4.0])
def test_paired_follows_the_scale_of_what_is_stored(residual, images, open_model, k):
    """A law of the formula: stored statistics of k times the unit give an estimate of k times the unit."""
    plain = import_graph(residual)
    scaled = import_graph(residual)
    batch_norm = find_batch_norms(scaled)[1]
    batch_norm.with_statistics(k * batch_norm.mean, k**2 * batch_norm.variance)
    one, other = (paired(graph, batches(images), open_model, ["bn2"], seed=0)["bn2"] for graph in (plain, scaled))
    np.testing.assert_allclose(other.mean, k * one.mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(other.variance, k**2 * one.variance, rtol=1e-5)


def test_rounding_noise_around_a_large_mean_is_no_variance(parse, open_model):
    model = parse(
        "(float[N, 1] x) => (float[N, 1] y) { y = BatchNormalization (x, g, b, m, v) }",
        {name: np.ones(1, np.float32) for name in ("g", "b", "m", "v")},
    )
    x = np.full((64, 1), 10000, np.float32)
    x[::2] = np.nextafter(np.float32(10000), np.float32(20000))
    assert exact(import_graph(model), [{"x": x}], open_model, ["y"])["y"].kept.all()


def test_too_few_values_are_an_error(parse, open_model):
    weights = {name: np.ones(3, np.float32) for name in ("g", "b", "m", "v")}
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = BatchNormalization (x, g, b, m, v) }", weights)
    with pytest.raises(DataError, match="at least 16 samples"):
        exact(import_graph(model), [{"x": np.eye(3, dtype=np.float32)}], open_model, ["y"])
