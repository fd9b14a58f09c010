"""The mismatch of stored statistics, and how much of it is chance."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.mismatch import MismatchProbe, chance_of, excess_of, mismatch_of
from vsfix.graph_passes.model_file import import_graph
from vsfix.graph_passes.noise import Noise, NoiseKind

NETWORK = "(float[N, 4] x) => (float[N, 4] y) {\n y = BatchNormalization (x, g, b, mean, var)\n}"
HALF = Noise(NoiseKind.DROPOUT, 0.5)


@pytest.fixture
def values() -> np.ndarray:
    """Four channels with means and deviations of their own, shape (400, 4)."""
    return np.random.default_rng(2).normal([0, 1, -2, 3], [1, 2, 0.5, 1.5], (400, 4)).astype(np.float32)


@pytest.fixture
def stored(parse, values):
    """A BatchNorm that stores what `values` have, but for what is given."""

    def build(**statistics: np.ndarray) -> onnx.ModelProto:
        weights = {"g": np.ones(4), "b": np.zeros(4), "mean": values.mean(0), "var": values.var(0)} | statistics
        return parse(NETWORK, {name: np.asarray(array, np.float32) for name, array in weights.items()})

    return build


def probe_of(model, values, open_model, batches: int = 4) -> MismatchProbe:
    parts = [{"x": part} for part in np.array_split(values, batches)]
    return MismatchProbe(import_graph(model), parts, open_model, noise_seed=0)


def test_residuals_are_those_of_the_definition(stored, values, open_model):
    mean, var = np.array([0.5, 1, -2, 2.5]), np.array([1, 3, 0.3, 2.0])
    residuals = probe_of(stored(mean=mean, var=var), values, open_model, batches=2).residuals({})
    for half, found in zip(np.array_split(values.astype(np.float64), 2), residuals, strict=True):
        expected = np.concatenate([(half.mean(0) - mean) / np.sqrt(var), np.log(half.var(0)) - np.log(var)])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_noise_raises_the_variance_by_the_formula_of_the_paper(stored, values, open_model):
    probe = probe_of(stored(), values, open_model)
    with_noise = probe.residuals({"x": HALF}).mean(axis=0)[4:]
    c, v = values.mean(0), values.var(0)
    np.testing.assert_allclose(with_noise, np.log(((c**2 + v) / 0.5 - c**2) / v), atol=0.15)


def test_mismatch_is_excess_and_chance():
    residuals = np.random.default_rng(0).normal(size=(2, 50))
    assert mismatch_of(residuals) == pytest.approx(excess_of(residuals) + chance_of(residuals), rel=1e-12)


def test_chance_is_the_error_of_the_whole_set():
    # Two halves with errors of variance 2 about a truth: the whole has errors of variance 1.
    halves = np.random.default_rng(0).normal(0.7, np.sqrt(2), (2, 200_000))
    assert chance_of(halves) / 200_000 == pytest.approx(1.0, rel=0.02)
    assert excess_of(halves) / 200_000 == pytest.approx(0.49, rel=0.03)


def test_both_halves_draw_their_own_noise(stored, values, open_model):
    # The same images twice: only the draws differ, and a probe that shared them would see no chance at all.
    probe = MismatchProbe(import_graph(stored()), [{"x": values}] * 2, open_model, noise_seed=0)
    assert chance_of(probe.residuals({})) == 0
    assert chance_of(probe.residuals({"x": HALF})) > 0


def test_weighted_squares_sum_up_to_the_mismatch_of_the_batch_norm(stored, values, open_model):
    probe = probe_of(stored(mean=values.mean(0) + 0.4), values, open_model)
    residuals, weights = probe.evidence()
    (per_batch_norm,) = probe.per_batch_norm(residuals * weights).values()
    assert per_batch_norm == pytest.approx(mismatch_of(residuals * weights))
    assert per_batch_norm == pytest.approx(np.mean(0.16 / values.var(0)), rel=0.01)


def test_a_channel_that_says_nothing_weighs_nothing(stored, values, open_model):
    nearly_dead = values.copy()
    nearly_dead[:, 1] = 0
    nearly_dead[0, 1] = 5  # in one half only
    nearly_dead[:, 2] = 7
    _, weights = probe_of(stored(var=np.array([1, 4, 0.25, 0])), nearly_dead, open_model).evidence()
    np.testing.assert_array_equal(weights, [1, 0, 0, 0] * 2)


@pytest.mark.parametrize(("apart", "weight"), [(1.19, 1), (1.21, 0)])
def test_halves_may_lie_so_far_apart_and_no_farther(stored, open_model, apart, weight):
    """0.6 deviations from the middle, either of them."""
    half = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    half = (half - half.mean(0)) / half.std(0)
    far = half + np.float32([0, apart, 0, 0])
    statistics = {"mean": np.float32([0, apart / 2, 0, 0]), "var": np.ones(4)}
    probe = MismatchProbe(import_graph(stored(**statistics)), [{"x": half}, {"x": far}], open_model, noise_seed=0)
    _, weights = probe.evidence()
    np.testing.assert_array_equal(weights > 0, [True, bool(weight), True, True] * 2)


def test_a_residual_is_capped(stored, values, open_model):
    residuals = probe_of(stored(mean=np.full(4, 1e6)), values, open_model).residuals({})
    np.testing.assert_array_equal(residuals[:, :4], -3.0)


def test_one_batch_is_halved_by_its_samples_and_one_sample_is_refused(stored, values, open_model):
    probe = probe_of(stored(), values, open_model, batches=1)
    expected = [values[start::2].mean(0, dtype=np.float64) for start in (0, 1)]
    found = probe.residuals({})[:, :4] * values.std(0) + values.mean(0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(DataError, match="fewer than two samples"):
        probe_of(stored(), values[:1], open_model, batches=1)


@pytest.mark.parametrize("batches", [1, 4])
def test_an_input_without_a_batch_axis_goes_into_both_halves(parse, values, open_model, batches):
    body = """(float k, float[N, 4] x) => (float[N, 4] y) {
        h = Mul (x, k)
        y = BatchNormalization (h, g, b, mean, var)
    }"""
    weights = {"g": np.ones(4), "b": np.zeros(4), "mean": 2 * values.mean(0), "var": 4 * values.var(0)}
    model = parse(body, {name: np.asarray(array, np.float32) for name, array in weights.items()})
    parts = [{"k": np.array(2, np.float32), "x": part} for part in np.array_split(values, batches)]
    probe = MismatchProbe(import_graph(model), parts, open_model, noise_seed=0)
    assert probe.samples == 400
    assert np.abs(probe.residuals({}).mean(axis=0)).max() < 0.05


def test_statistics_that_no_image_speaks_to_are_refused(stored, values, open_model):
    with pytest.raises(DataError, match="varies enough"):
        probe_of(stored(), np.ones_like(values), open_model).evidence()


def test_the_graph_keeps_its_statistics(stored, values, open_model):
    model = stored()
    graph = import_graph(model)
    MismatchProbe(graph, [{"x": values}], open_model, noise_seed=0).residuals({"x": HALF})
    (found,) = find_batch_norms(graph)
    np.testing.assert_array_equal(found.mean, onnx.numpy_helper.to_array(model.graph.initializer[2]))
    assert len(graph.nodes) == 1
