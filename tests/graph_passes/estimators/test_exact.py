from __future__ import annotations

import numpy as np

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.estimators.exact import exact
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, measure

ALL = ("bn1", "bn2", "bn3")


def batches(x: np.ndarray, size: int = 60) -> list[dict[str, np.ndarray]]:
    return [{"x": x[start : start + size]} for start in range(0, len(x), size)]


def test_with_overwhelming_evidence_exact_takes_the_measured_statistics(residual, images, open_model):
    """Values of three times the usual size, twenty times over: nothing is left to doubt."""
    many = batches(np.concatenate([images] * 20) * 3, 400)
    graph = import_graph(residual)
    measured = measure(graph, many, open_model, MeasurementConfig(ALL))
    for name, estimate in exact(graph, many, open_model, ALL).items():
        np.testing.assert_allclose(estimate.variance, measured[name].variance, rtol=2e-3)
        np.testing.assert_allclose(
            estimate.mean, measured[name].mean, atol=2e-3 * np.sqrt(estimate.variance.max()), rtol=0.01
        )


def test_what_follows_sees_what_is_written_and_not_what_was_measured(residual, images, open_model):
    """bn2 is measured downstream of the weighed statistics of bn1."""
    graph = import_graph(residual)
    estimates = exact(graph, batches(images), open_model, ALL)
    find_batch_norms(graph)[0].with_statistics(estimates["bn1"].mean, estimates["bn1"].variance)
    again = exact(graph, batches(images), open_model, ["bn2", "bn3"])
    np.testing.assert_allclose(again["bn2"].variance, estimates["bn2"].variance, rtol=1e-5)


def test_exact_skips_the_layers_that_were_not_named(residual, images, open_model):
    estimates = exact(import_graph(residual), batches(images), open_model, ["bn2"])
    assert list(estimates) == ["bn2"]


def test_what_follows_an_unchanged_channel_is_measured_downstream_of_it(parse, open_model):
    """Channel 0 is constant, so the first BatchNorm does not change it; the second must see what will be deployed."""
    body = """(float[N, 2] x) => (float[N, 2] y) {
        n = BatchNormalization (x, g, b, m, v)
        r = Relu (n)
        h = MatMul (r, w)
        y = BatchNormalization (h, g2, b2, m2, v2)
    }"""
    weights = {name: np.ones(2, np.float32) for name in ("g", "b", "m", "v", "g2", "b2", "m2", "v2")}
    weights |= {"m": np.zeros(2, np.float32), "w": np.array([[2, -1], [0.5, 1]], np.float32)}
    x = np.random.default_rng(0).normal(size=(20000, 2)).astype(np.float32)
    x[:, 0] = 5
    graph = import_graph(parse(body, weights))
    estimates = exact(graph, [{"x": x}], open_model, ["n", "y"])
    assert estimates["n"].invalid.tolist() == [True, False]
    deployed = (x.astype(np.float64) - estimates["n"].mean) / np.sqrt(estimates["n"].variance + 1e-5) + 1
    truth = np.maximum(deployed, 0) @ weights["w"].astype(np.float64)
    np.testing.assert_allclose(estimates["y"].mean, truth.mean(0), rtol=1e-3)
    np.testing.assert_allclose(estimates["y"].variance, truth.var(0), rtol=2e-3)


def test_rounding_noise_around_a_large_mean_is_no_variance(parse, open_model):
    model = parse(
        "(float[N, 1] x) => (float[N, 1] y) { y = BatchNormalization (x, g, b, m, v) }",
        {name: np.ones(1, np.float32) for name in ("g", "b", "m", "v")},
    )
    x = np.full((64, 1), 10000, np.float32)
    x[::2] = np.nextafter(np.float32(10000), np.float32(20000))
    assert exact(import_graph(model), [{"x": x}], open_model, ["y"])["y"].invalid.all()
