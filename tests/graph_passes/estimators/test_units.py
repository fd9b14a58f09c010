"""The units of a graph, and a z + b as written, against a run with Mul and Add spelled out."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import batch_norm_weights
from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.estimators.unit_fit import moved
from vsfix.graph_passes.estimators.units import (
    FoundParameters,
    InputMoments,
    find_units,
    insert_affine,
    write_parameters,
)
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.noise_average.noise_average import run_deployed
from vsfix.graph_passes.noise_average.samples import SampleSet
from vsfix.graph_passes.noise_average.taps import concrete_shapes
from vsfix.graph_passes.statistics.moments import Moments

RNG = np.random.default_rng(17)


def bn(data: str, name: str) -> str:
    return f'BatchNormalization ({data}, "{name}.weight", "{name}.bias", "{name}.running_mean", "{name}.running_var")'


def norms(*names: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    found = {}
    for name in names:
        found |= batch_norm_weights(name, 4, rng)
        found[f"{name}.weight"] *= np.array([1, -1, 1, -1], np.float32)
    return found


def w(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(0, 0.5, shape).astype(np.float32)


FLAT, MAPS = "(float[N, 4] x) => (float[N, 4] y)", "(float[N, 4, 5, 5] x) => (float[N, A, B, C] y)"
CONV = "Conv <pads = [1, 1, 1, 1]>"
# name: (head, body downstream of d, weights, the units)
CASES = {
    "BN-ReLU 1d": (FLAT, f"n = {bn('d', 'a')} y = Relu (n)", norms("a"), ["a"]),
    "BN-ReLU 2d": (MAPS, f"n = {bn('d', 'a')} y = Relu (n)", norms("a"), ["a"]),
    "BN-ReLU 3d": ("(float[N, 4, 3, 3, 3] x) => (float[N, A, B, C, D] y)", f"n = {bn('d', 'a')} y = Relu (n)", norms("a"), ["a"]),
    "Conv-ReLU": (MAPS, f"c = {CONV} (d, w) y = Relu (c)", {"w": w(4, 4, 3, 3)}, ["c"]),
    "Conv-Add-ReLU": (MAPS, f"c = {CONV} (d, w, u) e = Add (c, v) y = Relu (e)", {"w": w(4, 4, 3, 3), "u": w(4), "v": w(4, 1, 1)}, ["c"]),
    "grouped": (MAPS, "c = Conv <group = 2> (d, w) y = Relu (c)", {"w": w(6, 2, 3, 3)}, ["c"]),
    "transposed": (MAPS, "c = ConvTranspose <group = 2> (d, w) y = Relu (c)", {"w": w(4, 3, 3, 3)}, ["c"]),
    "Gemm": (FLAT, "c = Gemm <alpha = 0.5, beta = 2.0> (d, w, u) y = Relu (c)", {"w": w(4, 4), "u": w(4)}, ["c"]),
    "Gemm, turned": (FLAT, "c = Gemm <transB = 1> (d, w) y = Relu (c)", {"w": w(4, 4)}, ["c"]),
    "MatMul-Add": ("(float[N, 3, 4] x) => (float[N, 3, 4] y)", "c = MatMul (d, w) e = Add (u, c) y = Relu (e)", {"w": w(4, 4), "u": w(4)}, ["c"]),
    "MatMul": ("(float[N, 3, 4] x) => (float[N, 3, 4] y)", "c = MatMul (d, w) y = Tanh (c)", {"w": w(4, 4)}, ["c"]),
    "Conv-ReLU-BN": (MAPS, f"c = {CONV} (d, w) r = Relu (c) n = {bn('r', 'a')} y = Identity (n)", {"w": w(4, 4, 3, 3), **norms("a")}, ["c", "a"]),
    "pre-activation": (MAPS, f"n = {bn('d', 'a')} r = Relu (n) c = {CONV} (r, w) y = Add (c, d)", {"w": w(4, 4, 3, 3), **norms("a")}, ["a"]),
    "post-activation": (MAPS, f"c = {CONV} (d, w) n = {bn('c', 'a')} s = Add (n, d) y = Relu (s)", {"w": w(4, 4, 3, 3), **norms("a")}, ["a"]),
    "Concat": (MAPS, f"n = {bn('d', 'a')} m = {bn('d', 'b')} c = Concat <axis = 1> (n, m) y = Relu (c)", norms("a", "b"), ["a", "b"]),
    "one module twice": (MAPS, f"n = {bn('d', 'a')} r = Relu (n) c = {CONV} (r, w) m = {bn('c', 'a')} y = Relu (m)", {"w": w(4, 4, 3, 3), **norms("a")}, ["n", "m"]),
    "shared weights": (MAPS, f"c = {CONV} (d, w) r = Relu (c) e = {CONV} (r, w) y = Relu (e)", {"w": w(4, 4, 3, 3)}, ["c", "e"]),
}  # fmt: skip


def build(parse, case: str):
    head, body, weights, names = CASES[case]
    ratio = {"ratio": np.array(0.3, np.float32), "off": np.array(False)}
    model = parse(f"{head} {{ i = Identity (x) d = Dropout (i, ratio, off) {body} }}", weights | ratio)
    sides = [dim.dim_value or 12 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return import_graph(model), RNG.normal(0.3, 1, sides).astype(np.float32), names


def deployed(graph, x, open_model) -> np.ndarray:
    return run_deployed(graph, SampleSet.of([{"x": x}]), open_model).outputs["y"].astype(np.float64)


def decibels(found, truth) -> float:
    return 10 * np.log10(np.sum(truth**2) / max(np.sum((found - truth) ** 2), 1e-300))


def random_parameters(units) -> dict[str, FoundParameters]:
    return {
        unit.name: FoundParameters(RNG.uniform(0.5, 2, unit.channels), RNG.normal(size=unit.channels)) for unit in units
    }


@pytest.mark.parametrize("case", CASES)
def test_units_are_found_and_written_as_mul_and_add_say(parse, open_model, case):
    graph, x, names = build(parse, case)
    shapes = concrete_shapes(graph, {"x": x}, open_model)
    units = find_units(graph, shapes)
    assert [unit.name for unit in units] == names
    found = random_parameters(units)
    explicit = graph.copy()
    for affine in insert_affine(explicit, find_units(explicit, shapes), shapes):
        affine.write(found[affine.unit.name].scale, found[affine.unit.name].shift)
    before = deployed(graph, x, open_model)
    truth = deployed(explicit, x, open_model)
    write_parameters(graph, units, found)
    result = deployed(graph, x, open_model)
    np.testing.assert_allclose(result, truth, rtol=1e-5, atol=2e-6 * np.abs(truth).max())
    assert np.abs(before - truth).max() > 1e-2, "what is written must do something"
    constants = [tensor for node in graph.nodes for tensor in node.inputs if not tensor.inputs and tensor.name != "x"]
    by_name = {tensor.name: tensor for tensor in constants}
    assert all(by_name[tensor.name] is tensor for tensor in constants), "two constants of one name"


@pytest.mark.parametrize("case", ["one module twice", "shared weights"])
def test_writing_one_of_two_that_share_does_not_change_the_other(parse, open_model, case):
    graph, x, names = build(parse, case)
    shapes = concrete_shapes(graph, {"x": x}, open_model)
    units = find_units(graph, shapes)
    found = {name: values for name, values in random_parameters(units).items() if name == names[1]}
    kept = [tensor.values.copy() for tensor in graph.tensors()[names[0]].inputs[0].inputs[1:]]
    write_parameters(graph, units, found)
    after = [tensor.values for tensor in graph.tensors()[names[0]].inputs[0].inputs[1:]]
    assert all(one.tobytes() == other.tobytes() for one, other in zip(kept, after, strict=True))


@pytest.mark.parametrize("case", [case for case in CASES if "BN" in case or "twice" in case])
def test_other_moments_do_not_change_the_function(parse, open_model, case):
    graph, x, _ = build(parse, case)
    units = find_units(graph, concrete_shapes(graph, {"x": x}, open_model))
    before = deployed(graph, x, open_model)
    found = {
        unit.name: FoundParameters(np.ones(unit.channels), np.zeros(unit.channels), InputMoments(RNG.normal(0, 0.5, unit.channels), RNG.normal(0, 0.3, unit.channels)))
        for unit in units if unit.batch_norm
    }  # fmt: skip
    variances = [batch_norm.variance for batch_norm in find_batch_norms(graph)]
    assert len(write_parameters(graph, units, found)) == len(found)
    assert decibels(deployed(graph, x, open_model), before) > 110
    changed = [batch_norm.variance for batch_norm in find_batch_norms(graph)]
    assert all((one != other).all() for one, other in zip(variances, changed, strict=True))
    nothing = {unit.name: FoundParameters(np.ones(unit.channels), np.zeros(unit.channels)) for unit in units}
    values = [
        tensor.values.tobytes() for node in graph.nodes for tensor in node.inputs[1:] if hasattr(tensor, "values")
    ]
    assert write_parameters(graph, units, nothing) == ()
    assert values == [
        tensor.values.tobytes() for node in graph.nodes for tensor in node.inputs[1:] if hasattr(tensor, "values")
    ]


def test_the_stored_moments_become_those_with_the_noise_off(parse):
    """Scales of both signs: the mean moves with the input, not with the output."""
    graph, _, _ = build(parse, "BN-ReLU 1d")
    batch_norm = find_batch_norms(graph)[0]
    on = RNG.normal(size=(5000, 4))
    on = batch_norm.mean + np.sqrt(batch_norm.variance) * (on - on.mean(axis=0)) / on.std(axis=0)  # stored is true
    off = 0.7 * on + np.array([0.5, 0.6, -0.7, -0.8])
    unit = find_units(graph, {"n": (12, 4), "y": (12, 4)})[0]
    found = FoundParameters(np.ones(4), np.zeros(4), moved(Moments.of(off), Moments.of(on), batch_norm.gamma))
    write_parameters(graph, [unit], {"a": found})
    written = find_batch_norms(graph)[0]
    np.testing.assert_allclose(written.variance, off.var(axis=0), rtol=1e-5)
    np.testing.assert_allclose(written.mean, off.mean(axis=0), rtol=1e-5, atol=1e-5)
