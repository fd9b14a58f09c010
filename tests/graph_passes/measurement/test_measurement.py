"""The staged measurement against one float64 forward of the whole set as a single batch, computed by torch."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
import torch.nn.functional as F

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms, find_modules
from vsfix.graph_passes.errors import DataError, ModelError
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.measurement import measurement, staged_run, staging
from vsfix.graph_passes.measurement.activation_cache import ActivationCache
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, as_measured, measure, run_size
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.noise.sampling import draw_affine
from vsfix.graph_passes.statistics.moments import Moments

ALL = ("bn1", "bn2", "bn3")


def single_batch_truth(
    model: onnx.ModelProto, x: np.ndarray, corrected=ALL
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and biased variance of each BN input of the `residual` network, in float64, all samples in one batch."""
    w = {t.name: torch.tensor(onnx.numpy_helper.to_array(t).astype(np.float64)) for t in model.graph.initializer}
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def bn(t: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = t.mean(dim=(0, 2, 3)), t.var(dim=(0, 2, 3), unbiased=False)
        found[name] = mean.numpy(), var.numpy()
        if name not in corrected:
            mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        shape = (1, -1, 1, 1)
        t = (t - mean.reshape(shape)) / torch.sqrt(var.reshape(shape) + 1e-5)
        return t * w[f"{name}.weight"].reshape(shape) + w[f"{name}.bias"].reshape(shape)

    c1 = F.conv2d(torch.tensor(x.astype(np.float64)), w["conv1.weight"], padding=1)
    c2 = F.conv2d(F.relu(bn(c1, "bn1")), w["conv2.weight"], w["conv2.bias"], padding=1)
    c3 = F.conv2d(F.relu(bn(c2, "bn2")), w["conv3.weight"], padding=1)
    bn(c3 + c1, "bn3")
    return found


def split(x: np.ndarray, sizes: list[int]) -> list[dict[str, np.ndarray]]:
    assert sum(sizes) == len(x)
    return [{"x": part} for part in np.split(x, np.cumsum(sizes)[:-1])]


def assert_equal(measured, truth, rtol: float) -> None:
    for name, (mean, variance) in truth.items():
        np.testing.assert_allclose(measured[name].mean, mean, rtol=rtol, atol=rtol * np.sqrt(variance).max())
        np.testing.assert_allclose(measured[name].variance, variance, rtol=rtol)


@pytest.mark.parametrize("corrected", [ALL, ("bn2",), ("bn1", "bn3"), ()])
def test_equals_one_float64_forward_of_the_whole_set(residual, images, open_model, corrected):
    measured = measure(import_graph(residual), split(images, [60]), open_model, MeasurementConfig(corrected))
    assert_equal(measured, single_batch_truth(residual, images, corrected), rtol=1e-5)


@pytest.mark.parametrize("sizes", [[1] * 60, [59, 1], [7, 20, 33], [30, 30]])
def test_batch_sizes_change_nothing(residual, images, open_model, sizes):
    measured = measure(import_graph(residual), split(images, sizes), open_model, MeasurementConfig(ALL))
    assert_equal(measured, single_batch_truth(residual, images), rtol=1e-5)


def test_tapping_all_batch_norms_in_one_run_is_the_mistake_that_this_suite_sees(residual, images, open_model):
    tapped = measure(import_graph(residual), split(images, [60]), open_model, MeasurementConfig(()))
    with pytest.raises(AssertionError):
        assert_equal(tapped, single_batch_truth(residual, images), rtol=1e-2)


def test_two_runs_are_equal_bit_for_bit(residual, images, open_model):
    first, second = (
        measure(import_graph(residual), split(images, [23, 37]), open_model, MeasurementConfig(ALL, noise_seed=seed))
        for seed in (3, 3)
    )
    for name in ALL:
        assert first[name].mean.tobytes() == second[name].mean.tobytes()
        assert first[name].centred_sum.tobytes() == second[name].centred_sum.tobytes()


def test_noise_makes_a_difference_and_the_seed_too(residual, images, open_model):
    runs = [
        measure(import_graph(residual), split(images, [60]), open_model, MeasurementConfig(ALL, noise_seed=seed))
        for seed in (None, 1, 2)
    ]
    assert (runs[1]["bn1"].variance > 1.5 * runs[0]["bn1"].variance).all()
    assert not np.array_equal(runs[1]["bn1"].variance, runs[2]["bn1"].variance)


def test_each_marker_and_each_batch_draws_apart(residual, images, open_model, monkeypatch):
    from vsfix.graph_passes.measurement import staged_run

    draws = []
    apply_noise = staged_run.apply_noise

    def spy(noise, values, rng):
        noisy = apply_noise(noise, values, rng)
        draws.append((noisy == 0).tobytes())
        return noisy

    monkeypatch.setattr(staged_run, "apply_noise", spy)
    twice = [{"x": images[:20]}, {"x": images[:20]}]
    measure(import_graph(residual), twice, open_model, MeasurementConfig(ALL, noise_seed=0))
    assert len(draws) == len(set(draws)) == 2 * 2 * 3  # markers, batches, runs of 8, 8 and 4


@pytest.mark.long
def test_noise_behind_noise_and_noise_on_the_input_are_made(parse, open_model):
    """Both kinds at once have the variance (1 + s2)^2 E[x^2] - E[x]^2."""
    body = """(float[N, 3] x) => (float[N, 3] y) {
        d = Dropout (x)
        e = Dropout (d)
        y = BatchNormalization (e, g, b, m, v)
    }"""
    model = parse(body, {name: np.ones(3, np.float32) for name in ("g", "b", "m", "v")})
    x = np.random.default_rng(0).normal(0.5, 1, (60000, 3)).astype(np.float32)
    (found,) = measure(import_graph(model), [{"x": x}], open_model, MeasurementConfig(noise_seed=1)).values()
    np.testing.assert_allclose(found.variance, 4 * (x.astype(float) ** 2).mean(0) - x.mean(0) ** 2, rtol=0.05)


@pytest.mark.parametrize("opset", [9, 13, 18, 22, 25])
def test_noise_does_not_depend_on_the_opset(parse, open_model, opset):
    body = "(float[N, 3] x) => (float[N, 3] y) { d = Dropout (x)\n y = BatchNormalization (d, g, b, m, v) }"
    model = parse(body, {name: np.ones(3, np.float32) for name in ("g", "b", "m", "v")}, opset)
    x = np.ones((400, 3), dtype=np.float32)
    (found,) = measure(import_graph(model), [{"x": x}], open_model, MeasurementConfig(noise_seed=1)).values()
    rngs = [np.random.Generator(np.random.SFC64([1, 0, 0, sample])) for sample in range(400)]
    drawn = np.concatenate([draw_affine(Noise.parse("dropout:0.5"), (1, 3), rng)[0] for rng in rngs])
    np.testing.assert_array_equal(found.mean, drawn.mean(0, dtype=np.float64))


@pytest.mark.parametrize("sizes", [[1] * 60, [59, 1], [7, 20, 33]])
def test_the_noise_of_a_sample_does_not_depend_on_how_the_set_is_cut(residual, images, open_model, sizes):
    whole, cut = (
        measure(import_graph(residual), split(images, parts), open_model, MeasurementConfig(ALL, 5, repeats=3))
        for parts in ([60], sizes)
    )
    for name in ALL:
        np.testing.assert_allclose(cut[name].variance, whole[name].variance, rtol=1e-5)


@pytest.mark.parametrize("noise_seed", [None, 3])
def test_the_memory_at_hand_changes_no_bit(residual, images, open_model, noise_seed):
    """Nor the noise: what does not fit goes to the disk."""
    how = MeasurementConfig(ALL, noise_seed, repeats=1 if noise_seed is None else 4)
    held, spilled = (
        measure(import_graph(residual), split(images, [20, 40]), open_model, replace(how, max_memory=size))
        for size in (2**40, 0)
    )
    for name in ALL:
        assert held[name].mean.tobytes() == spilled[name].mean.tobytes()
        assert held[name].centred_sum.tobytes() == spilled[name].centred_sum.tobytes()


@pytest.mark.parametrize("limit", [0, 20_000, 60_000, 2**40])
@pytest.mark.parametrize("again", [0, 1, 2])
def test_what_finds_no_memory_is_computed_again_to_the_same_bits(
    residual, images, open_model, monkeypatch, limit, again
):
    caches: list[ActivationCache] = []

    def cache_of(max_memory):
        caches.append(ActivationCache(max_memory, resident=lambda: 0))
        return caches[-1]

    truth = measure(import_graph(residual), split(images, [60]), open_model, MeasurementConfig(ALL))
    monkeypatch.setattr(measurement, "ActivationCache", cache_of)
    monkeypatch.setattr(staged_run, "MOST_AGAIN", again)
    config = MeasurementConfig(ALL, max_memory=limit)
    found = measure(import_graph(residual), split(images, [15] * 4), open_model, config)
    for name in ALL:
        assert found[name].mean.tobytes() == truth[name].mean.tobytes()
        assert found[name].centred_sum.tobytes() == truth[name].centred_sum.tobytes()
    assert (caches[0].spilled > 0) == (again < 2 and limit < 2**40)


def test_the_graph_is_not_changed(residual, images, open_model):
    graph = import_graph(residual)
    before = export_model(graph, residual).SerializeToString()
    measure(graph, split(images, [60]), open_model, MeasurementConfig(ALL, noise_seed=0))
    assert export_model(graph, residual).SerializeToString() == before


def test_a_batch_norm_on_the_graph_input_is_measured(parse, open_model):
    rng = np.random.default_rng(0)
    weights = {name: np.ones(3, np.float32) for name in ("g", "b", "m", "v")}
    model = parse("(float[N, 3] x) => (float[N, 3] y) { y = BatchNormalization (x, g, b, m, v) }", weights)
    x = rng.normal(2, 3, (50, 3)).astype(np.float32)
    (moments,) = measure(import_graph(model), [{"x": x}], open_model, MeasurementConfig(("y",))).values()
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(0), rtol=1e-12)


def test_what_an_if_body_takes_from_outside_is_handed_on(open_model, parse):
    """The If stands behind the BN and reads a tensor from in front of it: it must survive until its stage."""
    body = """(float[N, 2] x, bool c) => (float[N, 2] z) {
        h = Abs (x)
        n = BatchNormalization (h, g, b, m, v)
        i = If (c) <then_branch = then_g () => (float[N, 2] t) { t = Add (h, n) },
                    else_branch = else_g () => (float[N, 2] e) { e = Sub (h, n) }>
        z = BatchNormalization (i, g2, b2, m2, v2)
    }"""
    weights = {name: np.ones(2, np.float32) for name in ("g", "b", "m", "v", "g2", "b2", "m2", "v2")}
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    batches = [{"x": x, "c": np.array(True)}]
    measured = measure(import_graph(parse(body, weights)), batches, open_model, MeasurementConfig(("n", "z")))
    h = np.abs(x.astype(np.float64))
    normalised = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) + 1
    np.testing.assert_allclose(measured["z"].variance, (h + normalised).var(0), rtol=1e-5)


def test_no_data_and_data_that_is_not_finite_are_refused(residual, images, open_model):
    with pytest.raises(DataError, match="empty"):
        measure(import_graph(residual), [], open_model)
    images[3, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="bn1"), np.errstate(invalid="ignore"):
        measure(import_graph(residual), [{"x": images}], open_model)


def test_weights_in_constant_nodes_are_not_cached(parse, open_model, monkeypatch):
    from vsfix.graph_passes.measurement import staged_run

    body = """(float[N, 2] x) => (float[N, 2] y) {
        w = Constant <value_floats = [2.0, 3.0]> ()
        v2 = Constant <value = float[2] {2.0, 3.0}> ()
        d = Dropout (x)
        h = Mul (d, v2)
        y = BatchNormalization (h, g, b, m, v)
    }"""
    cached: set[str] = set()
    put = staged_run.ActivationCache.put
    monkeypatch.setattr(
        staged_run.ActivationCache, "put", lambda self, n, arrays: (cached.update(arrays), put(self, n, arrays))[1]
    )
    weights = {name: np.ones(2, np.float32) for name in "gbmv"}
    x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    measure(import_graph(parse(body, weights)), [{"x": x}], open_model, MeasurementConfig(noise_seed=0))
    assert cached == {"d"}


class Shared:
    """A runner that lets `concurrency` threads in at once and keeps count of them.

    Args:
        runner: what computes.
        concurrency: how many threads the measurement is asked for.
        fails_at: the call that raises, counted from 1.
    """

    def __init__(self, runner, concurrency: int, fails_at: int = 0) -> None:
        self._runner, self.concurrency, self._fails_at = runner, concurrency, fails_at
        self._lock = threading.Condition()
        self.calls = self.inside = self.most = 0

    def run(self, inputs):
        with self._lock:
            self.calls += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
            number = self.calls
            self._lock.notify_all()
            self._lock.wait_for(lambda: self.most >= self.concurrency, timeout=10)
        time.sleep(0.005)  # so that one more, who may not come in, does
        outputs = self._runner.run(inputs)
        with self._lock:
            self.inside -= 1
        if number == self._fails_at:
            raise DataError("this one")
        return outputs

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize(
    ("samples", "side", "expected"),
    [(1, 8, 8), (64, 8, 8), (100, 8, 13), (512, 8, 64), (30000, 8, 64), (30000, 224, 6), (30000, 2000, 1)],
)
def test_a_run_is_small_where_samples_are_few_or_large(samples, side, expected):
    batch = {"x": np.broadcast_to(np.float32(0), (samples, 3, side, side))}
    assert run_size([batch]) == expected


@pytest.mark.parametrize("noise_seed", [None, 3])
def test_runs_side_by_side_give_the_same_bits_as_one_after_the_other(residual, images, open_model, noise_seed):
    found, most = [], []
    for concurrency in (1, 4):
        opened = []

        def open_shared(model, concurrency=concurrency, opened=opened):
            opened.append(Shared(open_model(model), concurrency))
            return opened[-1]

        config = MeasurementConfig(ALL, noise_seed, 3 if noise_seed else 1, max_memory=20_000)
        found.append(measure(import_graph(residual), split(images, [15] * 4), open_shared, config))
        most.append({runner.most for runner in opened})
    assert most[0] == {1}
    assert most[1] == {4}
    for name in ALL:
        assert found[0][name].mean.tobytes() == found[1][name].mean.tobytes()
        assert found[0][name].group_centred_sums.tobytes() == found[1][name].group_centred_sums.tobytes()


def test_a_run_that_fails_ends_the_measurement_and_what_waits_is_not_run(residual, images, open_model):
    opened = []

    def open_shared(model):
        opened.append(Shared(open_model(model), concurrency=2, fails_at=2))
        return opened[-1]

    with pytest.raises(DataError, match="this one"):
        measure(import_graph(residual), split(np.tile(images, (20, 1, 1, 1)), [100] * 12), open_shared)
    (runner,) = opened
    assert runner.inside == 0
    assert runner.calls < 19  # of ceil(1200 / 64)


def test_a_channel_that_no_correction_can_tell_keeps_what_it_stores(parse):
    """Channel 0 has moments to take; 1 does not vary, 2 and 3 store no variance."""
    statistics = {"m": np.float32([0.5, 0.5, 0.5, 0.5]), "v": np.float32([2, 2, 0, -1])}
    body = "(float[N, 4] x) => (float[N, 4] y) { y = BatchNormalization (x, g, b, m, v) }"
    (stored,) = find_batch_norms(
        import_graph(parse(body, {"g": np.ones(4, np.float32), "b": np.ones(4, np.float32)} | statistics))
    )
    x = np.random.default_rng(0).normal(3, 1, (50, 4))
    x[:, 1] = 3
    found = Moments.of(x)
    mean, variance = as_measured(stored, found)
    np.testing.assert_array_equal(mean, [found.mean[0], 0.5, 0.5, 0.5])
    np.testing.assert_array_equal(variance, [found.variance[0], 2, 0, -1])


def test_small_samples_of_a_graph_with_many_nodes_run_together():
    batch = {"x": np.zeros((500, 8), np.float32)}  # 32 bytes each
    assert run_size([batch], nodes=100) == 64
    assert run_size([batch], nodes=20_000) == 4096
    assert run_size([{"x": np.zeros((500, 3, 64, 64), np.float32)}], nodes=20_000) == 63


@pytest.mark.parametrize("seed", [None, 3])
def test_a_graph_that_is_cut_into_parts_is_measured_as_the_whole_one(residual, images, open_model, monkeypatch, seed):
    """Both with the noise off and on, with every BatchNorm corrected and with none."""
    for corrected in (ALL, ()):
        config = MeasurementConfig(corrected, noise_seed=seed)
        whole = measure(import_graph(residual), split(images, [60]), open_model, config)
        opened = []
        with monkeypatch.context() as patch:
            patch.setattr(staging, "MOST_NODES", 2)
            parts = measure(import_graph(residual), split(images, [60]), counting(open_model, opened), config)
        assert max(opened) <= 2
        for name, moments in whole.items():
            np.testing.assert_allclose(parts[name].mean, moments.mean, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(parts[name].variance, moments.variance, rtol=1e-6)


def counting(open_model, opened: list[int]):
    """The same runtime, which notes how many nodes that are no tap each model has."""

    def opening(model):
        opened.append(sum("#vsfix" not in name for node in model.graph.node for name in node.output[:1]))
        return open_model(model)

    return opening


def test_uses_of_a_batch_norm_that_wait_for_each_other_are_refused_and_not_waited_for(parse, open_model):
    body = """(float[N, 3] x) => (float[N, 3] y) {
        a = Relu (x) c = BatchNormalization (a, s, b, m, v)
        e = If (on) <then_branch = t () => (float[n, 3] p) { p = Relu (c) },
        else_branch = f () => (float[n, 3] q) { q = Neg (c) }>
        y = BatchNormalization (e, s, b, m, v) }"""
    numbers = {name: np.full(3, value, np.float32) for name, value in zip("sbmv", (0.9, 0.1, 0.3, 1.5), strict=True)}
    graph = import_graph(parse(body, numbers | {"on": np.array(True)}))
    batches = [{"x": np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)}]
    corrected = MeasurementConfig([module.name for module in find_modules(graph)])
    with pytest.raises(ModelError, match=r"'\w+' waits for itself.*take --method analytic"):
        measure(graph, batches, open_model, corrected)
