"""F against numpy, and the laws of its draws."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.measurement.measurement import measure
from vsfix.graph_passes.noise.noise import Noise, NoiseKind
from vsfix.graph_passes.noise.sampling import apply_noise
from vsfix.graph_passes.noise_average.noise_average import NoiseAverage, run_deployed
from vsfix.graph_passes.noise_average.samples import SampleSet

RNG = np.random.default_rng(6)
LINEAR = "(float[N, 4] x) => (float[N, 3] y) { d = Dropout (x, ratio, off) y = MatMul (d, w) }"
ONLY = "(float[N, 6, 5] x) => (float[N, 6, 5] y) { i = Identity (x) d = Dropout (i, ratio, off) y = Identity (d) }"
VALUE = {NoiseKind.UOUT: 0.8, NoiseKind.UOUT_BERNOULLI: 0.8, NoiseKind.UOUT_GAUSSIAN: 0.5}


def weights(ratio: float = 0.4, dtype=np.float32) -> dict[str, np.ndarray]:
    w = np.random.default_rng(1).normal(size=(4, 3)).astype(dtype)
    return {"w": w, "ratio": np.array(ratio, np.float32), "off": np.array(False)}


def tagged(model, kind: NoiseKind, value: float):
    """The same model with noise of another kind on its marker."""
    graph = import_graph(model)
    marker = next(node for node in graph.nodes if node.op == "Dropout")
    marker.name = f"n#vsfix.noise:{kind.value}={value!r}" if kind is not NoiseKind.DROPOUT else "n"
    return graph


def draws_of(graph, x, open_model, draws, seed=0, size=None, output="y") -> np.ndarray:
    """(K, N, ...): the output under each draw."""
    batches = [x] if size is None else [x[i : i + size] for i in range(0, len(x), size)]
    samples = SampleSet.of([{"x": batch} for batch in batches])
    found: dict[int, list[np.ndarray]] = {}
    for run in NoiseAverage(graph, samples, open_model, seed).runs(range(draws)):
        found.setdefault(run.draw, []).append(run.arrays[output])
    return np.stack([np.concatenate(found[draw]) for draw in range(draws)])


def test_the_average_of_a_linear_network_is_the_deployed_one(parse, open_model):
    graph = import_graph(parse(LINEAR, weights()))
    x = RNG.normal(1, 1, (40, 4)).astype(np.float32)
    found = draws_of(graph, x, open_model, 800)
    deployed = run_deployed(graph, SampleSet.of([{"x": x}]), open_model).outputs["y"]
    error = found.std(axis=0) / np.sqrt(800)
    z = (found.mean(axis=0) - deployed) / error
    assert np.abs(z).max() < 4.5
    assert np.abs(z).mean() < 1
    biased = (found.mean(axis=0) - 1.1 * deployed) / error
    assert np.abs(biased).mean() > 2, "a noise whose mean is not 1 must be seen"


@pytest.mark.parametrize("kind", list(NoiseKind))
def test_every_kind_of_noise_is_the_one_that_apply_noise_draws(parse, open_model, kind):
    value = VALUE.get(kind, 0.3)
    graph = tagged(parse(ONLY, weights(value)), kind, value)
    x = np.full((50, 6, 5), 1.5, np.float32)
    x += np.arange(50, dtype=np.float32)[:, None, None] * 1e-3  # samples that differ
    fed = draws_of(graph, x, open_model, 20) / 1.5
    rng = np.random.default_rng(9)
    truth = np.stack([apply_noise(Noise(kind, value), x, rng) for _ in range(20)]) / 1.5
    assert fed.mean() == pytest.approx(truth.mean(), abs=0.06)
    assert fed.var() == pytest.approx(truth.var(), rel=0.15)
    shared = [
        np.ptp(values.astype(np.float64) / np.sort(x, axis=0), axis=axis).max() < 1e-3
        for values in (fed, truth)
        for axis in (3, (2, 3))
    ]
    assert shared[:2] == shared[2:], "what shares a draw must be the same"


@pytest.mark.parametrize("kind", [NoiseKind.DROPOUT, NoiseKind.FEATURE_DROPOUT, NoiseKind.DROP_PATH])
def test_the_shared_axes_tell_the_kinds_apart(parse, open_model, kind):
    """The planted mistake of the test above: another kind of the same variance shares other axes."""
    fed = draws_of(tagged(parse(ONLY, weights()), kind, 0.3), np.ones((50, 6, 5), np.float32), open_model, 2)
    assert (np.ptp(fed, axis=3).max() == 0) == (kind is not NoiseKind.DROPOUT)
    assert (np.ptp(fed, axis=(2, 3)).max() == 0) == (kind is NoiseKind.DROP_PATH)


def test_batches_order_and_runs_change_no_bit(parse, open_model):
    graph = import_graph(parse(LINEAR, weights()))
    x = RNG.normal(1, 1, (100, 4)).astype(np.float32)
    found = draws_of(graph, x, open_model, 2)
    for other in (x, x[RNG.permutation(100)]):
        for size in (1, 7, 64):
            assert draws_of(graph, other, open_model, 2, size=size).tobytes() == found.tobytes()


def test_a_prescribed_batch_changes_no_draw(parse, open_model):
    """Equal noise, whatever the runs; the runtime may round a product otherwise."""
    graph = import_graph(parse(LINEAR, weights()))
    x = RNG.normal(1, 1, (40, 4)).astype(np.float32)
    found = []
    for prescribed in (4, 40):
        runs = NoiseAverage(graph, SampleSet.of([{"x": x}], prescribed), open_model).runs([3])
        found.append(np.concatenate([run.arrays["y"] for run in runs]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_a_draw_does_not_depend_on_the_others(parse, open_model):
    graph = import_graph(parse(LINEAR, weights()))
    x = RNG.normal(1, 1, (30, 4)).astype(np.float32)
    samples = SampleSet.of([{"x": x}])
    alone = [run.arrays["y"] for run in NoiseAverage(graph, samples, open_model).runs([5])]
    among = [run.arrays["y"] for run in NoiseAverage(graph, samples, open_model).runs(range(8)) if run.draw == 5]
    assert [one.tobytes() for one in alone] == [one.tobytes() for one in among]


def test_the_seed_the_draw_and_the_marker_each_change_the_noise(parse, open_model):
    body = """(float[N, 4] x) => (float[N, 4] y, float[N, 4] u) {
        i = Identity (x) d = Dropout (i, ratio, off) y = Identity (d) e = Dropout (i, ratio, off) u = Identity (e) }"""
    graph = import_graph(parse(body, {name: value for name, value in weights().items() if name != "w"}))
    x = np.ones((64, 4), np.float32)
    found = [draws_of(graph, x, open_model, 2, seed, output=name) for seed in (0, 1) for name in ("y", "u")]
    masks = np.concatenate([draws.reshape(2, -1) > 0 for draws in found])
    agree = np.array([[np.mean(a == b) for b in masks] for a in masks])
    assert agree[~np.eye(8, dtype=bool)].max() < 0.75  # independent masks of 0.6 agree in 0.52
    assert agree[~np.eye(8, dtype=bool)].min() > 0.35


def test_equal_samples_get_independent_noise(parse, open_model):
    found = draws_of(import_graph(parse(ONLY, weights())), np.ones((30, 6, 5), np.float32), open_model, 1)[0]
    assert len({sample.tobytes() for sample in found}) == 30


def test_noise_on_the_graph_input_and_one_that_is_an_output(parse, open_model):
    body = "(float[N, 4] x) => (float[N, 4] y) { y = Dropout (x, ratio, off) }"
    graph = import_graph(parse(body, {name: value for name, value in weights().items() if name != "w"}))
    x = np.ones((200, 4), np.float32)
    found = draws_of(graph, x, open_model, 4)
    np.testing.assert_allclose(np.unique(found), [0, 1 / 0.6], rtol=1e-6)
    np.testing.assert_array_equal(run_deployed(graph, SampleSet.of([{"x": x}]), open_model).outputs["y"], x)


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("kind", [NoiseKind.DROPOUT, NoiseKind.ALPHA_DROPOUT])
def test_half_precision_graphs_have_the_same_noise(parse, open_model, stated, kind):
    body = "(float16[N, 6] x) => (float16[N, 6] y) { d = Dropout (n, ratio, off) y = Identity (d) }"
    body = body.replace("{", "{ n = Neg (x)")
    model = parse(body, {name: value for name, value in weights(0.5).items() if name != "w"})
    graph = tagged(model, kind, 0.5)
    if stated:
        graph.tensors()["n"].dtype = np.dtype(np.float16)
    half = draws_of(graph, np.full((40, 6), -2, np.float16), open_model, 3)
    assert half.dtype == np.float16
    rng = np.random.default_rng(0)
    values = np.unique(apply_noise(Noise(kind, 0.5), np.full((400, 6), 2, np.float16), rng))
    np.testing.assert_allclose(np.unique(half), values, rtol=3e-3)


def test_sequences_whose_batch_is_the_second_axis_have_noise_of_their_own(parse, open_model):
    body = """(float[N, T, 4] x) => (float[N, T, 4] y) {
        t = Transpose <perm = [1, 0, 2]> (x) d = Dropout (t, ratio, off) y = Transpose <perm = [1, 0, 2]> (d) }"""
    graph = import_graph(parse(body, {name: value for name, value in weights().items() if name != "w"}))
    x = np.ones((70, 6, 4), np.float32)
    found = draws_of(graph, x, open_model, 6)
    assert found.mean() == pytest.approx(1, abs=0.035)
    assert found.var() == pytest.approx(0.4 / 0.6, rel=0.04)
    assert draws_of(graph, x, open_model, 6, size=7).tobytes() == found.tobytes()
    masks = found.reshape(-1, 4) > 0
    flat = masks.reshape(6 * 70, 24).astype(float)
    assert np.abs(np.corrcoef(flat, rowvar=False) - np.eye(24)).max() < 0.25


def test_rows_that_are_folded_into_the_batch_follow_their_sample(parse, open_model):
    body = """(float[N, 6, 4] x) => (float[N, 6, 4] y) {
        r = Reshape (x, flat) d = Dropout (r, ratio, off) y = Reshape (d, back) }"""
    shapes = {"flat": np.array([-1, 4]), "back": np.array([-1, 6, 4])}
    graph = import_graph(parse(body, {**{name: value for name, value in weights().items() if name != "w"}, **shapes}))
    x = RNG.uniform(1, 2, (70, 6, 4)).astype(np.float32)
    found = draws_of(graph, x, open_model, 2)
    alone = draws_of(graph, x[:9], open_model, 2)  # the same samples among fewer
    both = {sample.tobytes() for sample in found[0]} & {sample.tobytes() for sample in alone[0]}
    assert len(both) == 9


@pytest.mark.parametrize("kind", [NoiseKind.DROPOUT, NoiseKind.DROP_PATH, NoiseKind.ALPHA_DROPOUT])
def test_a_ratio_of_0_is_no_noise(parse, open_model, kind):
    graph = tagged(parse(LINEAR, weights(0.0)), kind, 0.0)
    x = RNG.normal(1, 1, (20, 4)).astype(np.float32)
    samples = SampleSet.of([{"x": x}])
    average = NoiseAverage(graph, samples, open_model)
    assert not average.has_noise
    found = np.concatenate([run.arrays["y"] for run in average.runs([0])])
    assert found.tobytes() == run_deployed(graph, samples, open_model).outputs["y"].tobytes()


def test_the_graph_is_not_changed(parse, open_model):
    graph = import_graph(parse(LINEAR, weights()))
    before = [(node.op, [tensor.name for tensor in node.inputs]) for node in graph.nodes]
    draws_of(graph, RNG.normal(size=(9, 4)).astype(np.float32), open_model, 2)
    assert [(node.op, [tensor.name for tensor in node.inputs]) for node in graph.nodes] == before
    assert graph.outputs[0].inputs[0].op == "MatMul"


def test_a_network_in_float64_has_its_noise_in_float64(parse, open_model):
    body = "(double[N, 4] x) => (double[N, 3] y) { d = Dropout (x, ratio, off) y = MatMul (d, w) }"
    graph = import_graph(parse(body, weights(dtype=np.float64)))
    found = draws_of(graph, RNG.normal(size=(6, 4)), open_model, 4)
    assert found.dtype == np.float64
    assert found.std(axis=0).min() > 0


def test_a_mask_that_is_read_is_true_where_the_data_is_kept(parse, open_model):
    body = """(float[N, 4] x) => (float[N, 4] y, float[N, 4] z)
    { d, m = Dropout (x, ratio, off)  y = Identity (d)  z = Cast <to: int = 1> (m) }"""
    graph = import_graph(parse(body, {k: v for k, v in weights().items() if k != "w"}))
    x = RNG.normal(size=(50, 4)).astype(np.float32)
    kept, mask = (draws_of(graph, x, open_model, 1, output=name) for name in ("y", "z"))
    np.testing.assert_array_equal(kept != 0, mask == 1)
    assert 0 < mask.mean() < 1


def test_outputs_that_do_not_hold_the_samples_are_left_out(parse, open_model):
    body = """(float[N, 4] x) => (float[N, 4] y, float s, int64[2] n, int64[K, 2] i, float[M, 4] rows)
    { y = Relu (x)  s = ReduceSum <keepdims: int = 0> (x)  n = Shape (x)  t = NonZero (y)
      i = Transpose (t)  rows = Concat <axis: int = 0> (y, y) }"""
    graph = import_graph(parse(body, {}))
    samples = SampleSet.of([{"x": RNG.normal(size=(50, 4)).astype(np.float32)}])
    assert set(run_deployed(graph, samples, open_model).outputs) == {"y", "rows"}


def test_sequences_beside_the_noise_are_no_obstacle(parse, open_model):
    body = """(float[N, 4] x) => (float[N, 2] y)
    { d = Dropout (x, ratio, off)  s = SplitToSequence <axis: int = 1> (d, two)  y = SequenceAt (s, one) }"""
    given = {k: v for k, v in weights().items() if k != "w"} | {"two": np.array(2), "one": np.array(1)}
    graph = import_graph(parse(body, given))
    x = RNG.normal(size=(9, 4)).astype(np.float32)
    assert draws_of(graph, x, open_model, 3).shape == (3, 9, 2)


NORMED = """(float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, w) d = Dropout (a, ratio, off)
    m = BatchNormalization (d, g, b, mean, var) r = Relu (m) y = BatchNormalization (r, g, b, mean, var2) }"""


def normed(parse, ratio: float):
    given = weights(ratio) | {"w": np.random.default_rng(2).normal(size=(4, 4)).astype(np.float32)}
    given |= {
        "g": np.ones(4),
        "b": np.full(4, 0.2),
        "mean": np.full(4, 0.1),
        "var": np.full(4, 2.0),
        "var2": np.ones(4),
    }
    return import_graph(
        parse(
            NORMED, {name: np.asarray(a, a.dtype if a.dtype.kind == "b" else np.float32) for name, a in given.items()}
        )
    )


def test_one_run_with_the_noise_off_shows_every_batch_norm_what_a_measurement_does(parse, open_model):
    graph = normed(parse, 0.4)
    x = RNG.normal(1, 1, (70, 4)).astype(np.float32)
    samples = SampleSet.of([{"x": x}])
    found = run_deployed(graph, samples, open_model).moments
    wanted = measure(graph, samples.batches, open_model)
    assert set(found) == set(wanted)
    assert len(found) == 2
    for name, moments in wanted.items():
        np.testing.assert_array_equal(found[name].mean, moments.mean)
        np.testing.assert_array_equal(found[name].variance, moments.variance)


def test_with_the_noise_on_the_second_moment_grows_by_its_variance(parse, open_model):
    graph, ratio = normed(parse, 0.4), 0.4
    x = RNG.normal(1, 1, (20000, 4)).astype(np.float32)
    samples = SampleSet.of([{"x": x}])
    off, on = run_deployed(graph, samples, open_model).moments, NoiseAverage(graph, samples, open_model).moments()
    first = next(iter(off))
    square = (off[first].variance + off[first].mean ** 2) / (1 - ratio)
    np.testing.assert_allclose(on[first].mean, off[first].mean, atol=0.06)
    np.testing.assert_allclose(on[first].variance + on[first].mean ** 2, square, rtol=0.03)
    assert (on[first].variance > 1.3 * off[first].variance).all()


def test_a_batch_norm_of_a_constant_is_named(parse, open_model):
    graph = normed(parse, 0.4)
    node = next(node for node in graph.nodes if node.op == "BatchNormalization")
    node.inputs[0] = gs.Constant("c", np.ones((5, 4), np.float32))
    with pytest.raises(ModelError, match="normalises a constant"):
        run_deployed(graph, SampleSet.of([{"x": np.ones((5, 4), np.float32)}]), open_model)
