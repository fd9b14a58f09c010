"""Every layout against slices of numpy."""

from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.io.model_file import export_subgraph, import_graph
from vsfix.graph_passes.noise_average.taps import choose_positions, concrete_shapes, positions_of, tap_positions

RNG = np.random.default_rng(4)
LAYOUTS = [((6, 5), 6, 1), ((6, 5, 7), 6, 1), ((6, 5, 4, 3), 6, 1), ((6, 5, 2, 3, 2), 6, 1)]
LAYOUTS += [((6, 5), 6, -1), ((6, 4, 5), 6, -1), ((6, 3, 4, 5), 6, -1)]
LAYOUTS += [((6, 5), 2, 1), ((6, 5, 4), 2, 1), ((6, 5, 4, 3), 3, 1), ((6, 4, 5), 2, -1), ((6, 5), 2, -1)]


def expected(x: np.ndarray, samples: int, axis: int) -> np.ndarray:
    """(N, P, C): the positions of a sample in the order of its memory, the channels last."""
    last = np.moveaxis(x, axis, -1)
    return last.reshape(samples, -1, last.shape[-1])


def run_tap(parse, open_model, x, samples, axis, chosen, first=None):
    graph = import_graph(
        parse(
            "(float["
            + ",".join("abcdef"[: x.ndim])
            + "] x) => (float["
            + ",".join("abcdef"[: x.ndim])
            + "] y) { y = Neg (x) }",
            {},
        )
    )
    tap = tap_positions(graph.outputs[0], first or x.shape, samples, axis, chosen)
    model = export_subgraph(graph, [*graph.nodes, *tap.nodes], graph.inputs, [tap.output])
    with open_model(model) as runner:
        return tap.read(runner.run({"x": x}))


@pytest.mark.parametrize(("shape", "samples", "axis"), LAYOUTS)
@pytest.mark.parametrize("take", [False, True])
def test_a_tap_gives_what_numpy_slices(parse, open_model, shape, samples, axis, take):
    x = RNG.normal(size=shape).astype(np.float32)
    truth = expected(-x, samples, axis)
    assert positions_of(shape, samples, axis) == truth.shape[1]
    chosen = sorted({0, truth.shape[1] - 1, truth.shape[1] // 2}) if take else None
    found = run_tap(parse, open_model, x, samples, axis, chosen)
    np.testing.assert_array_equal(found, truth if chosen is None else truth[:, chosen])


def test_the_other_axis_gives_something_else(parse, open_model):
    x = RNG.normal(size=(6, 5, 5)).astype(np.float32)
    assert not np.array_equal(run_tap(parse, open_model, x, 6, 1, None), expected(-x, 6, -1))


def test_a_smaller_last_batch_fits_the_same_tap(parse, open_model):
    x = RNG.normal(size=(4, 5, 3)).astype(np.float32)
    found = run_tap(parse, open_model, x, 3, 1, [1, 4], first=(6, 5, 3))  # planned for 3 samples of 2 rows
    np.testing.assert_array_equal(found, expected(-x, 2, 1)[:, [1, 4]])


def test_a_shape_that_does_not_hold_the_samples_is_refused():
    for shape in ((7, 3), (5,)):
        with pytest.raises(ModelError, match="does not hold"):
            positions_of(shape, 5, 1)


def test_a_choice_is_seeded_sorted_and_without_repetition():
    one, other = (choose_positions(100, 20, (1, seed)) for seed in (5, 6))
    assert one == choose_positions(100, 20, (1, 5)) != other
    assert one == sorted(set(one))
    assert len(one) == 20
    assert choose_positions(20, 20, (1, 5)) is None


def test_shapes_are_those_of_a_run(parse, open_model):
    graph = import_graph(
        parse(
            "(float[N, 4] x) => (float[a, b] y) { t = Transpose <perm = [1, 0]> (x) y = Concat <axis = 0> (t, t) }", {}
        )
    )
    found = concrete_shapes(graph, {"x": np.zeros((3, 4), np.float32)}, open_model)
    assert found == {"x": (3, 4), "t": (4, 3), "y": (8, 3)}
    assert [node.op for node in graph.nodes] == ["Transpose", "Concat"]


# Each of these has another shape in ONNX's own inference than in ONNX Runtime.
SCALES = {"scales": np.array([1, 1, 1.3, 1.3], np.float32)}
FILTER = {"filter": np.ones((2, 2, 3, 3), np.float32)}
TOLD_BY_RUNTIME = [
    ("y = MaxPool <kernel_shape = [2, 2], strides = [3, 3], ceil_mode = 1> (x)", 6, {}),
    ("y = AveragePool <kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1> (x)", 7, {}),
    ('y = Resize <mode = "nearest"> (x, , scales)', 10, SCALES),
    ('y = ConvTranspose <strides = [2, 2], auto_pad = "SAME_UPPER", output_padding = [1, 1]> (x, filter)', 5, FILTER),
]


@pytest.mark.parametrize(("body", "side", "weights"), TOLD_BY_RUNTIME)
def test_shapes_that_inference_and_runtime_find_differently_are_those_of_the_runtime(
    parse, open_model, body, side, weights
):
    x = np.ones((3, 2, side, side), np.float32)
    graph = import_graph(parse(f"(float[N, 2, s, t] x) => (float[a, b, c, d] y) {{ {body} }}", weights))
    with open_model(export_subgraph(graph, graph.nodes, graph.inputs, graph.outputs)) as runner:
        truth = runner.run({"x": x})["y"].shape
    assert concrete_shapes(graph, {"x": x}, open_model)["y"] == truth
