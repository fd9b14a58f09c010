from __future__ import annotations

import numpy as np
import onnx.numpy_helper
import onnx.parser
import pytest

from vsfix.graph_passes.measurement import MeasurementConfig, measure
from vsfix.graph_passes.model_file import import_graph
from vsfix.graph_passes.noise_analysis import Distance, analyse_noise

BN = {name: np.ones(2, np.float32) for name in ("g", "b", "m", "v")}
CONSTANTS = {
    **BN,
    "w": np.ones((2, 2, 1, 1), np.float32),
    "k": np.ones((2, 2), np.float32),
    "shape": np.array([0, 2, -1]),
    "two": np.array([2.0], np.float32),
}


def reach(parse, middle: str, *, noisy: str = "d") -> tuple[Distance, ...]:
    """The distances at which noise on `d` reaches the BatchNorm behind `middle`, which writes `h` from `d` and `x`."""
    body = f"""(float[N, 2, 4, 4] x) => (y) {{
        a = Abs (x)
        {noisy} = Dropout (a)
        {middle}
        y = BatchNormalization (h, g, b, m, v)
    }}"""
    used = {
        name: value for name, value in CONSTANTS.items() if name in BN or f" {name}" in middle or f"({name}" in middle
    }
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\nmain {body}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in used.items())
    return tuple(path.distance for path in analyse_noise(import_graph(model)).reaching["y"])


@pytest.mark.parametrize(
    ("middle", "distance"),
    [
        ("h = Identity (d)", Distance.DIRECT),
        ("t = Transpose <perm: ints = [0, 1, 3, 2]> (d)\n h = Identity (t)", Distance.DIRECT),
        ("h = Reshape (d, shape)", Distance.DIRECT),
        ("h = Conv (d, w)", Distance.LINEAR),
        ("h = Add (d, x)", Distance.LINEAR),
        ("h = Concat <axis: int = 1> (d, x)", Distance.LINEAR),
        ("h = GlobalAveragePool (d)", Distance.LINEAR),
        ("h = Mul (d, two)", Distance.LINEAR),
        ("h = Mul (d, d)", Distance.DOWNSTREAM),
        ("h = MatMul (d, k)", Distance.LINEAR),
        ("h = MatMul (d, d)", Distance.DOWNSTREAM),
        ("h = Relu (d)", Distance.DOWNSTREAM),
        ("h = MaxPool <kernel_shape: ints = [2, 2]> (d)", Distance.DOWNSTREAM),
        ("n = BatchNormalization (d, g, b, m, v)\n h = Conv (n, w)", Distance.DOWNSTREAM),
        ("r = Relu (d)\n h = Add (r, d)", Distance.LINEAR),
        ("c = Conv (d, w)\n h = Identity (c)", Distance.LINEAR),
    ],
)
def test_distance_is_that_of_the_nearest_path(parse, middle, distance):
    assert reach(parse, middle) == (distance,)


@pytest.mark.parametrize(
    "middle",
    [
        "h = Relu (x)",
        "s = Shape (d)\n z = ConstantOfShape (s)\n h = Add (x, z)",
        "h = Conv (a, w)",
    ],
)
def test_what_noise_does_not_reach_has_no_path(parse, middle):
    assert reach(parse, middle) == ()


def test_the_body_of_an_if_lets_noise_through(parse):
    middle = """c = ReduceMax <keepdims: int = 0> (x)
        q = Cast <to: int = 9> (c)
        h = If (q) <then_branch = t () => (float[N, 2, 4, 4] p) { p = Relu (d) },
                    else_branch = e () => (float[N, 2, 4, 4] r) { r = Abs (x) }>"""
    assert reach(parse, middle) == (Distance.DOWNSTREAM,)


def test_every_source_is_named_with_its_path(residual):
    found = analyse_noise(import_graph(residual))
    assert [source.name for source in found.sources] == ["d1", "d2"]
    assert [(p.source.name, str(p.distance), p.through) for p in found.reaching["bn2"]] == [
        ("d2", "direct", ()),
        ("d1", "downstream", ("BatchNormalization", "Relu", "Conv", "Dropout")),
    ]
    assert found.reached == {"bn1", "bn2", "bn3"}


def test_the_reached_set_is_where_two_noisy_runs_differ(residual, images, open_model):
    """The second way: run the noise twice and see which BatchNorm inputs change."""
    residual.graph.node[1].op_type = "Identity"  # the first marker is gone: bn1 is out of reach
    del residual.graph.node[1].input[1:]
    graph = import_graph(residual)
    runs = [measure(graph, [{"x": images}], open_model, MeasurementConfig((), noise_seed=seed)) for seed in (1, 2)]
    differing = {name for name in runs[0] if not np.array_equal(runs[0][name].mean, runs[1][name].mean)}
    assert differing == analyse_noise(graph).reached == {"bn2", "bn3"}
