"""Markers put back where a name says: the right edges, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.noise.insertion import InsertNoise, parse_noise_option
from vsfix.graph_passes.noise.marker import RemoveMarkers, read_marker
from vsfix.graph_passes.noise.noise import Noise, NoiseKind

HALF = Noise(NoiseKind.DROPOUT, 0.5)
KINDS = [HALF, Noise(NoiseKind.UOUT, 0.1), Noise(NoiseKind.FEATURE_DROPOUT, 0.2)]
SHARED = """(float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y, int64[4] s) {
    [stem] c = Conv <pads: ints = [1, 1, 1, 1]> (x, w)
    [norm] n = BatchNormalization (c, g, b, m, v)
    [act] r = Relu (n)
    [size] s = Shape (r)
    [look] t = Identity (s)
    [last] z = Conv <pads: ints = [1, 1, 1, 1]> (r, w)
    [sum] y = Add (z, c)
}"""


@pytest.fixture
def shared(parse):
    """A tensor `c` that a BatchNorm and an Add read; build(opset) makes the model."""

    def build(opset: int = 18) -> onnx.ModelProto:
        rng = np.random.default_rng(0)
        weights = {"w": rng.normal(0, 0.3, (3, 3, 3, 3)).astype(np.float32)}
        weights |= {name: rng.uniform(0.5, 1.5, 3).astype(np.float32) for name in "gbmv"}
        return parse(SHARED, weights, opset)

    return build


def markers(graph) -> list[tuple[str, tuple[str, ...], Noise]]:
    """The tensor upstream of each marker, the nodes downstream of it, and the noise."""
    found = [(node, read_marker(node)) for node in graph.nodes]
    return [
        (node.inputs[0].name, tuple(reader.name for reader in node.outputs[0].outputs), noise)
        for node, noise in found
        if noise is not None
    ]


@pytest.mark.parametrize(
    ("name", "tensor", "readers"),
    [
        ("norm", "c", ("norm",)),
        ("stem", "c", ("norm", "sum")),
        ("c", "c", ("norm", "sum")),
        ("c->sum", "c", ("sum",)),
        ("x", "x", ("stem",)),
        ("no*m", "c", ("norm",)),
        ("act", "r", ("size", "last")),
    ],
)
def test_a_name_means_one_insertion_point(shared, name, tensor, readers):
    graph = import_graph(shared())
    result = InsertNoise({name: HALF})(graph)
    assert markers(graph) == [(tensor, readers, HALF)]
    assert len(result.changed) == 1


def test_where_only_tensors_count_a_batch_norm_of_the_same_name_does_not(parse):
    weights = {name: np.ones(3, np.float32) for name in "gbmv"}
    body = "(float[N, 3] x) => (float[N, 3] y) {\n n = BatchNormalization (x, g, b, m, v)\n y = Relu (n)\n}"
    graphs = [import_graph(parse(body, weights)) for _ in range(2)]
    InsertNoise({"n": HALF})(graphs[0])
    InsertNoise({"n": HALF}, tensors_only=True)(graphs[1])
    assert [markers(graph)[0][0] for graph in graphs] == ["x", "n"]


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 18, 22])
@pytest.mark.parametrize("noise", KINDS, ids=str)
def test_in_every_opset_the_file_is_valid_computes_the_same_and_is_read_back(shared, open_model, opset, noise):
    model = shared(opset)
    graph = import_graph(model)
    InsertNoise({"norm": noise, "last": noise})(graph)
    marked = export_model(graph, model)
    onnx.checker.check_model(marked, full_check=True)
    assert [found for _, _, found in markers(import_graph(marked))] == [noise, noise]
    x = {"x": np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)}
    with open_model(model) as before, open_model(marked) as after:
        np.testing.assert_array_equal(before.run(x)["y"], after.run(x)["y"])


def test_taking_the_markers_out_again_gives_the_same_graph(residual):
    graph = import_graph(residual)
    RemoveMarkers()(graph)
    before = export_model(graph, residual).SerializeToString()
    InsertNoise({"bn*": HALF, "r2": HALF})(graph)
    assert export_model(graph, residual).SerializeToString() != before
    RemoveMarkers()(graph)
    assert export_model(graph, residual).SerializeToString() == before


def test_a_second_run_changes_nothing(shared):
    model = shared()
    graph = import_graph(model)
    InsertNoise({"norm": HALF})(graph)
    before = export_model(graph, model).SerializeToString()
    result = InsertNoise({"norm": HALF})(graph)
    assert not result.modified
    assert "there already" in result.skipped[0].reason
    assert export_model(graph, model).SerializeToString() == before


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({"nowhere*": HALF}, "no BatchNorm, node or tensor"),
        ({"c->stem": HALF}, "no BatchNorm, node or tensor"),
        ({"s": HALF}, "whole numbers"),
        ({"look": HALF}, "whole numbers"),
        ({"sum": HALF}, "no node reads"),
        ({"norm": HALF, "c": HALF}, "both mean the tensor 'c'"),
    ],
)
def test_an_invalid_insertion_point_is_refused_and_nothing_changes(shared, points, message):
    model = shared()
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString()
    with pytest.raises(InputError, match=message) as error:
        InsertNoise(points)(graph)
    assert "\n" not in str(error.value)
    assert export_model(graph, model).SerializeToString() == before


@pytest.mark.parametrize("name", ["norm", "stem", "c"])
def test_another_noise_at_the_insertion_point_is_refused(shared, name):
    graph = import_graph(shared())
    InsertNoise({"norm": Noise(NoiseKind.DROPOUT, 0.3)})(graph)
    with pytest.raises(InputError, match=r"dropout:0\.3 is there already"):
        InsertNoise({name: HALF})(graph)


def test_an_opset_in_which_dropout_could_drop_is_refused(shared):
    graph = import_graph(shared())
    graph.opset = 6
    with pytest.raises(InputError, match="opset 6"):
        InsertNoise({"norm": HALF})(graph)


def test_the_last_equals_sign_of_an_option_divides_it():
    assert parse_noise_option("stage1.*.bn2=dropout:0.5") == ("stage1.*.bn2", HALF)
    assert parse_noise_option("a=b->c=uout:0.1") == ("a=b->c", Noise(NoiseKind.UOUT, 0.1))


@pytest.mark.parametrize("text", ["dropout:0.5", "=dropout:0.5", "bn=dropout", "bn=dropout:1.5", "bn=rain:0.5", ""])
def test_an_option_of_another_format_is_refused(text):
    with pytest.raises(InputError):
        parse_noise_option(text)


def test_where_no_batch_norm_is_left_the_error_names_the_nodes(parse):
    weights = {"a": np.eye(3, dtype=np.float32), "b": np.eye(3, dtype=np.float32)}
    model = parse("(float[N, 3] x) => (float[N, 3] y) { h = MatMul (x, a) r = Relu (h) y = MatMul (r, b) }", weights)
    graph = import_graph(model)
    for node, name in zip(graph.nodes, ("first", "act", "last"), strict=True):
        node.name = name
    with pytest.raises(InputError, match=r"no BatchNorm is left; there are the nodes first, act, last$"):
        InsertNoise({"bn": HALF})(graph)
    InsertNoise({"act": HALF})(graph)
