"""The match against a brute-force search in float64, and the channels that it must not change."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tests.conftest import batch_norm_weights
from vsfix.graph_passes.estimators.activations import Activation
from vsfix.graph_passes.estimators.layers import UnitOutputs
from vsfix.graph_passes.estimators.matching import TargetCollector, match
from vsfix.graph_passes.estimators.unit_fit import SeenUnit, UnitTarget, UnitUse, solve_unit
from vsfix.graph_passes.estimators.units import find_units, write_parameters
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.noise_average.noise_average import NoiseAverage, run_deployed
from vsfix.graph_passes.noise_average.samples import SampleSet, held_out_rows

RNG = np.random.default_rng(19)


def relu() -> Activation:
    z, h = gs.Variable("z"), gs.Variable("h")
    return Activation(z, h, (gs.Node("Relu", inputs=[z], outputs=[h]),))


def target_of(t: np.ndarray) -> UnitTarget:
    return UnitTarget(None, t, t.var(axis=(0, 1)))


def brute_force(z: np.ndarray, t: np.ndarray) -> tuple[float, float]:
    """a and b of one channel on a grid that is refined twelve times."""
    a, b, width = 1.5, 0.0, 1.5
    for _ in range(12):
        grid = np.linspace(-width, width, 41)
        aa, bb = np.maximum(a + grid, 0.02)[:, None, None], (b + grid)[None, :, None]
        loss = ((np.maximum(aa * z + bb, 0) - t) ** 2).sum(axis=-1)
        i, j = np.unravel_index(loss.argmin(), loss.shape)
        a, b, width = float(aa[i, 0, 0]), float(bb[0, j, 0]), width / 3
    return a, b


def noise_averaged_targets(seed: int, samples: int = 150, channels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = rng.normal(0.2, 1, (samples, 1, channels))
    t = np.maximum(z[None] * 1.2 + 0.3 + rng.normal(0, 0.8, (64, *z.shape)), 0).mean(axis=0)
    return z, t


def test_a_unit_is_solved_as_brute_force_solves_it():
    z, t = noise_averaged_targets(1)
    held_out = held_out_rows(len(z))
    found = solve_unit([UnitUse(relu(), SeenUnit(z, {}), target_of(t))], held_out).parameters
    fitted = ~held_out
    for channel in range(5):
        a, b = brute_force(z[fitted, 0, channel], t[fitted, 0, channel])
        losses = [
            ((np.maximum(p * z[fitted, 0, channel] + q, 0) - t[fitted, 0, channel]) ** 2).sum()
            for p, q in ((found.scale[channel], found.shift[channel]), (a, b), (1.0, 0.0), (1.1 * a, b))
        ]
        np.testing.assert_allclose([found.scale[channel], found.shift[channel]], [a, b], atol=0.03)
        assert losses[0] < 1.005 * losses[1] < 0.95 * losses[2]
        assert losses[3] > 1.005 * losses[1], "a scale that is a tenth off must be seen"


def test_targets_of_other_data_change_nothing():
    """The planted mistake: t belongs to other samples, so that nothing found holds where it is judged."""
    z, _ = noise_averaged_targets(1)
    t = RNG.normal(size=z.shape)
    z_fit = z.copy()
    found = solve_unit(
        [UnitUse(relu(), SeenUnit(z_fit, {}), target_of(np.maximum(z, 0)))], held_out_rows(len(z))
    ).parameters
    assert found.changed == 0
    wrong = solve_unit([UnitUse(relu(), SeenUnit(z, {}), target_of(t))], held_out_rows(len(z)))
    assert wrong.after > 0.8


def test_a_channel_that_gains_only_where_it_is_fitted_stays():
    z, t = noise_averaged_targets(2)
    held_out = held_out_rows(len(z))
    t[held_out] = np.maximum(z[held_out], 0)  # those that judge are right already
    found = solve_unit([UnitUse(relu(), SeenUnit(z, {}), target_of(t))], held_out).parameters
    np.testing.assert_array_equal(found.scale, 1)
    np.testing.assert_array_equal(found.shift, 0)
    ignored = solve_unit([UnitUse(relu(), SeenUnit(z, {}), target_of(t))], np.zeros(len(z), bool)).parameters
    assert ignored.changed == 5, "without those that judge every channel would move"


BODY = """(float[N, 6] x) => (float[N, 2] y) {
    h1 = MatMul (x, w1) d1 = Dropout (h1, ratio, off)
    n1 = BatchNormalization (d1, "a.weight", "a.bias", "a.running_mean", "a.running_var") r1 = Relu (n1)
    h2 = MatMul (r1, w2) d2 = Dropout (h2, ratio, off)
    n2 = BatchNormalization (d2, "b.weight", "b.bias", "b.running_mean", "b.running_var") r2 = Relu (n2)
    y = MatMul (r2, w3) }"""


def two_layers(parse, ratio: float = 0.5):
    rng = np.random.default_rng(5)
    shapes = {"w1": (6, 8), "w2": (8, 8), "w3": (8, 2)}
    weights = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= batch_norm_weights("a", 8, rng) | batch_norm_weights("b", 8, rng)
    weights |= {"ratio": np.array(ratio, np.float32), "off": np.array(False)}
    return import_graph(parse(BODY, weights))


def study(graph, x, open_model, draws=16, seed=0):
    samples = SampleSet.of([{"x": x}])
    average = NoiseAverage(graph, samples, open_model, seed)
    units = find_units(graph, average.shapes)
    collector = TargetCollector(average, units, samples, seed)
    sizes = dict(zip(samples.first, (len(batch["x"]) for batch in samples.batches), strict=True))
    mean = np.zeros((len(x), 2))
    for run in average.runs(range(draws), collector.taps):
        collector.add(run.first, sizes[run.first], run.arrays)
        mean[run.first : run.first + sizes[run.first]] += run.arrays["y"] / draws
    return units, collector.result(), samples, average.shapes, mean


def distances(graph, units, targets, samples, shapes, open_model) -> dict[str, float]:
    chosen = {name: target.chosen for name, target in targets.items()}
    watch = UnitOutputs(units, chosen, shapes, len(samples.batches[0]["x"]))
    run_deployed(graph, samples, open_model, watch)
    return watch.distances(targets)


def test_the_output_comes_nearer_to_f_and_the_layers_too(parse, open_model):
    graph, x = two_layers(parse), RNG.normal(0.5, 1, (256, 6)).astype(np.float32)
    units, targets, samples, shapes, mean = study(graph, x, open_model, 64, seed=2)
    found = match(graph, units, targets, samples, shapes, open_model)
    before = distances(graph, units, targets, samples, shapes, open_model)
    distance = ((run_deployed(graph, samples, open_model).outputs["y"] - mean) ** 2).mean()
    write_parameters(graph, units, {name: unit.parameters for name, unit in found.items()})
    after = distances(graph, units, targets, samples, shapes, open_model)
    assert ((run_deployed(graph, samples, open_model).outputs["y"] - mean) ** 2).mean() < 0.9 * distance
    assert all(after[name] < before[name] for name in ("a", "b"))


def test_noise_that_does_next_to_nothing_changes_next_to_nothing(parse, open_model):
    graph, x = two_layers(parse, 1e-6), RNG.normal(0.5, 1, (64, 6)).astype(np.float32)
    units, targets, samples, shapes, _ = study(graph, x, open_model, 4)
    for unit in match(graph, units, targets, samples, shapes, open_model).values():
        np.testing.assert_allclose(unit.parameters.scale, 1, atol=1e-4)
        np.testing.assert_allclose(unit.parameters.shift, 0, atol=1e-4)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_order_of_the_samples_changes_no_bit(parse, open_model, size):
    graph, x = two_layers(parse), RNG.normal(0.5, 1, (64, 6)).astype(np.float32)
    results = []
    for rows in (x, x[np.random.default_rng(size).permutation(64)]):
        units, targets, samples, shapes, _ = study(graph, rows, open_model, 4)
        found = match(graph, units, targets, samples, shapes, open_model)
        results.append([(u.parameters.scale.tobytes(), u.parameters.shift.tobytes()) for u in found.values()])
    assert results[0] == results[1]


def test_a_unit_whose_noise_writes_an_output_is_looked_at(parse, open_model):
    body = BODY.replace("(float[N, 2] y)", "(float[N, 2] y, float[N, 8] u)").replace(
        "y =", "u = Dropout (n2, ratio, off) y ="
    )
    rng = np.random.default_rng(5)
    shapes = {"w1": (6, 8), "w2": (8, 8), "w3": (8, 2)}
    weights = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= batch_norm_weights("a", 8, rng) | batch_norm_weights("b", 8, rng)
    weights |= {"ratio": np.array(0.5, np.float32), "off": np.array(False)}
    graph, x = import_graph(parse(body, weights)), RNG.normal(0.5, 1, (64, 6)).astype(np.float32)
    units, targets, samples, shapes_, _ = study(graph, x, open_model, 4)
    assert set(match(graph, units, targets, samples, shapes_, open_model)) >= {"a", "b"}
    assert set(distances(graph, units, targets, samples, shapes_, open_model)) >= {"a", "b"}


def test_two_units_of_one_stage_may_read_the_same_shortcut(parse, open_model):
    def normalise(data: str, name: str) -> str:
        names = ", ".join(f'"{name}.{part}"' for part in ("weight", "bias", "running_mean", "running_var"))
        return f"BatchNormalization ({data}, {names})"

    body = f"""(float[N, 4] x) => (float[N, 4] y) {{
        s = Neg (x) d = Dropout (s, ratio, off) n = {normalise("d", "a")} m = {normalise("d", "b")}
        p = Add (n, s) q = Add (m, s) r = Relu (p) t = Relu (q) y = Add (r, t) }}"""
    rng = np.random.default_rng(0)
    weights = batch_norm_weights("a", 4, rng) | batch_norm_weights("b", 4, rng)
    weights |= {"ratio": np.array(0.5, np.float32), "off": np.array(False)}
    graph = import_graph(parse(body, weights))
    samples = SampleSet.of([{"x": rng.normal(size=(32, 4)).astype(np.float32)}])
    average = NoiseAverage(graph, samples, open_model)
    units = find_units(graph, average.shapes)
    assert [[side.name for side in unit.activation.sides] for unit in units] == [["s"], ["s"]]
    collected = TargetCollector(average, units, samples, 0)
    for run in average.runs(range(4), collected.taps):
        collected.add(run.first, len(samples.batches[0]["x"]), run.arrays)
    found = match(graph, units, collected.result(), samples, average.shapes, open_model)
    assert list(found) == ["a", "b"]
    assert all(0 < unit.after <= unit.before for unit in found.values())
