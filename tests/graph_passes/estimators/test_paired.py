from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import CheckFailedError, DataError
from vsfix.graph_passes.estimators.exact import exact
from vsfix.graph_passes.estimators.paired import PairedConfig, growing_parts, paired
from vsfix.graph_passes.estimators.repair_statistics import RepairStatistics
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, measure
from vsfix.graph_passes.noise.noise import Noise

ALL = ("bn1", "bn2", "bn3")


def batches(x: np.ndarray, size: int = 60) -> list[dict[str, np.ndarray]]:
    return [{"x": x[start : start + size]} for start in range(0, len(x), size)]


def trained_statistics(residual, open_model, population):
    """Stores in `residual` the statistics of training with its noise over a whole population."""
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
    estimates = paired(graph, few, open_model, ALL, PairedConfig(0))
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


def test_paired_with_the_wrong_noise_is_seen(residual, images, open_model):
    """Half the ratio gives another answer by far more than the tolerance of the test above."""
    right = paired(import_graph(residual), batches(images), open_model, ["bn1"], PairedConfig(0))
    for initializer in residual.graph.initializer:
        if initializer.name == "ratio":
            initializer.raw_data = np.array(0.25, dtype=np.float32).tobytes()
    wrong = paired(import_graph(residual), batches(images), open_model, ["bn1"], PairedConfig(0))
    assert (wrong["bn1"].variance > 1.3 * right["bn1"].variance).all()


@pytest.mark.parametrize("k", [0.25, 4.0])
def test_paired_follows_the_scale_of_what_is_stored(residual, images, open_model, k):
    """A law of the formula: stored statistics of k times the unit give an estimate of k times the unit."""
    plain = import_graph(residual)
    scaled = import_graph(residual)
    batch_norm = find_batch_norms(scaled)[1]
    batch_norm.with_statistics(k * batch_norm.mean, k**2 * batch_norm.variance)
    one, other = (
        paired(graph, batches(images), open_model, ["bn2"], PairedConfig(0))["bn2"] for graph in (plain, scaled)
    )
    np.testing.assert_allclose(other.mean, k * one.mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(other.variance, k**2 * one.variance, rtol=1e-5)


def test_without_noise_every_statistic_stays_to_the_bit(residual, images, open_model):
    for initializer in residual.graph.initializer:
        if initializer.name == "ratio":
            initializer.raw_data = np.array(0.0, dtype=np.float32).tobytes()
    graph = import_graph(residual)
    estimates = paired(graph, batches(images), open_model, ALL)
    assert not RepairStatistics(estimates, {})(graph).modified


def test_the_closed_form_directly_downstream_of_dropout_is_met(residual, open_model):
    """v = var * Var_off / ((c^2 + Var_off) / p - c^2) with c the mean of the input: the first row of the paper."""
    images = np.random.default_rng(3).normal(0.3, 1.2, (400, 3, 8, 8)).astype(np.float32)
    graph = import_graph(residual)
    off = measure(graph, batches(images), open_model, MeasurementConfig())["bn1"]
    stored = find_batch_norms(graph)[0]
    p = 1 / (1 + Noise.parse("dropout:0.5").variance)
    closed_form = stored.variance * off.variance / ((off.mean**2 + off.variance) / p - off.mean**2)
    estimate = paired(graph, batches(images), open_model, ["bn1"], PairedConfig(seed=1))["bn1"]
    np.testing.assert_allclose(estimate.variance, closed_form, rtol=0.01)


def test_a_constant_channel_keeps_its_statistics(residual, images, open_model):
    for initializer in residual.graph.initializer:
        if initializer.name == "conv1.weight":
            weight = np.frombuffer(initializer.raw_data, np.float32).reshape(6, 3, 3, 3).copy()
            weight[4] = 0
            initializer.raw_data = weight.tobytes()
    graph = import_graph(residual)
    stored = find_batch_norms(graph)[0]
    estimate = paired(graph, batches(images), open_model, ["bn1"])["bn1"]
    assert estimate.invalid.tolist() == [False, False, False, False, True, False]
    assert estimate.variance[4] == stored.variance[4]
    assert estimate.mean[4] == stored.mean[4]


def test_samples_are_taken_until_the_intervals_are_narrow_enough(residual, open_model):
    images = np.random.default_rng(3).normal(0.3, 1.2, (256, 3, 8, 8)).astype(np.float32)
    graph = import_graph(residual)
    coarse, fine, never = (
        paired(graph, batches(images), open_model, ["bn1"], PairedConfig(max_interval_width=width))["bn1"]
        for width in (0.5, 0.01, 1e-6)
    )
    assert (coarse.samples, never.samples) == (32, 256)
    assert coarse.half_width > 0.01 >= fine.half_width
    assert fine.samples in (64, 128, 256)


def test_a_batch_norm_whose_channels_are_all_dead_takes_no_samples(residual, open_model):
    images = np.random.default_rng(3).normal(0.3, 1.2, (256, 3, 8, 8)).astype(np.float32)
    for initializer in residual.graph.initializer:
        if initializer.name == "conv2.weight":
            initializer.raw_data = np.zeros((6, 6, 3, 3), np.float32).tobytes()
    config = PairedConfig(max_interval_width=0.5)
    found = paired(import_graph(residual), batches(images), open_model, ["bn1", "bn2"], config)
    assert (found["bn1"].samples, found["bn2"].samples) == (32, 32)
    assert found["bn2"].invalid.all()


def test_a_set_that_allows_more_looks_gives_wider_intervals_from_the_same_samples(residual, open_model):
    images = np.random.default_rng(3).normal(0.3, 1.2, (256, 3, 8, 8)).astype(np.float32)
    once, often = (
        paired(
            import_graph(residual), batches(images[:total]), open_model, ["bn1"], PairedConfig(max_interval_width=0.5)
        )["bn1"]
        for total in (32, 256)
    )
    assert once.samples == often.samples == 32
    assert 1.1 * once.half_width < often.half_width < 1.6 * once.half_width
    assert growing_parts(256) == [32, 64, 128, 256]


def test_a_set_that_is_no_power_of_two_is_spent_to_the_last_sample(residual, open_model):
    images = np.random.default_rng(3).normal(0.3, 1.2, (100, 3, 8, 8)).astype(np.float32)
    config = PairedConfig(max_interval_width=1e-6, repeats=1)
    assert paired(import_graph(residual), batches(images), open_model, ["bn1"], config)["bn1"].samples == 100


def test_more_runs_with_the_noise_on_make_a_narrower_interval(residual, images, open_model):
    once, often = (
        paired(import_graph(residual), batches(images), open_model, ["bn1"], PairedConfig(repeats=repeats))["bn1"]
        for repeats in (1, 16)
    )
    assert often.half_width < 0.8 * once.half_width


class Restless:
    """A runner that never gives the same numbers twice, in the outputs whose names end so."""

    def __init__(self, runner, ending):
        self._runner, self._ending, self._rng = runner, ending, np.random.default_rng()
        self.concurrency = runner.concurrency

    def run(self, inputs):
        outputs = self._runner.run(inputs)
        return {k: v + self._rng.random() if k.endswith(self._ending) else v for k, v in outputs.items()}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize("ending", ["#vsfix.mean", "#vsfix.square"])
def test_a_runtime_that_does_not_repeat_itself_is_refused(residual, images, open_model, ending):
    with pytest.raises(CheckFailedError, match="two runs with the noise off differ"):
        paired(import_graph(residual), batches(images), lambda model: Restless(open_model(model), ending), ALL)


def test_noise_that_changes_nothing_is_refused(residual, images, open_model, monkeypatch):
    from vsfix.graph_passes.measurement import staged_run

    monkeypatch.setattr(staged_run, "apply_noise", lambda noise, values, rng: values)
    with pytest.raises(CheckFailedError, match="nothing can be learnt"):
        paired(import_graph(residual), batches(images), open_model, ALL, PairedConfig(repeats=1))


def test_noise_that_leaves_every_mean_changes_something_all_the_same(residual, images, open_model, monkeypatch):
    from vsfix.graph_passes.measurement import staged_run

    def widened(noise, values, rng):
        return 2 * values - values.mean(axis=(2, 3), keepdims=True)

    monkeypatch.setattr(staged_run, "apply_noise", widened)
    estimate = paired(import_graph(residual), batches(images), open_model, ["bn1"], PairedConfig(repeats=1))["bn1"]
    assert (estimate.variance < 0.3 * find_batch_norms(import_graph(residual))[0].variance).all()


def test_a_batch_norm_upstream_of_the_noise_is_no_reason_to_refuse(parse, open_model):
    body = """(float[N, 2] x) => (float[N, 2] y) {
        n = BatchNormalization (x, g, b, m, v)
        d = Dropout (n, ratio, off)
        y = BatchNormalization (d, g2, b2, m2, v2)
    }"""
    weights = {name: np.ones(2, np.float32) for name in ("g", "b", "m", "v", "g2", "b2", "m2", "v2")}
    graph = import_graph(parse(body, weights | {"ratio": np.float32(0.5), "off": np.array(False)}))
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    estimates = paired(graph, batches(x), open_model, ["n", "y"])
    assert (estimates["n"].variance == 1).all()
    assert (estimates["y"].variance < 0.8).all()


def test_no_sample_is_an_error(residual, open_model):
    with pytest.raises(DataError, match="empty"):
        paired(import_graph(residual), [], open_model, ALL)
