from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.noise_average.noise_average import NoiseAverage, draws_for
from vsfix.graph_passes.noise_average.samples import SampleSet
from vsfix.graph_passes.noise_average.upstream import split_at_noise

RNG = np.random.default_rng(4)
WEIGHTS = {
    "w": RNG.normal(size=(4, 4)).astype(np.float32),
    "v": RNG.normal(size=(4, 4)).astype(np.float32),
    "ratio": np.array(0.4, np.float32),
    "off": np.array(False),
}
LATE = """(float[N, 4] x) => (float[N, 4] y, float[N, 4] early, float[N, 4] both) {
    a = MatMul (x, w) early = Relu (a) s = Neg (x) d = Dropout (early, ratio, off) e = MatMul (d, v)
    both = Add (e, s) y = Add (both, a) }"""


class Counting:
    """A runner that counts the samples that each model was run on."""

    def __init__(self, runner, counts) -> None:
        self._runner, self._counts, self.concurrency, self.name = runner, counts, 1, runner.name

    def run(self, inputs):
        self._counts.append(len(next(iter(inputs.values()))))
        return self._runner.run(inputs)

    def __enter__(self):
        self._runner.__enter__()
        return self

    def __exit__(self, *error):
        self._runner.__exit__(*error)


def counted(parse, open_model, room: int = 0) -> tuple[NoiseAverage, list[list[int]]]:
    """The average of `LATE` over 100 samples, and how many samples each run of each of its models has."""
    counts: list[list[int]] = []

    def opened(model):
        counts.append([])
        return Counting(open_model(model), counts[-1])

    samples = SampleSet.of([{"x": RNG.normal(size=(100, 4)).astype(np.float32)}])
    return NoiseAverage(import_graph(parse(LATE, WEIGHTS)), samples, opened, room=room), counts


def test_what_no_noise_reaches_runs_once_and_the_rest_gives_the_same(parse, open_model, monkeypatch):
    average, counts = counted(parse, open_model)
    counts.clear()
    parted = {(run.draw, run.first): run.arrays for run in average.runs(range(6))}
    assert sorted(map(sum, counts)) == [100, 600]
    monkeypatch.setattr("vsfix.graph_passes.noise_average.upstream.LINEAR_OPERATORS", ())
    counts.clear()
    whole = {(run.draw, run.first): run.arrays for run in average.runs(range(6))}
    assert [sum(found) for found in counts] == [600]
    assert parted.keys() == whole.keys()
    for key, arrays in whole.items():
        for name, array in arrays.items():
            np.testing.assert_allclose(parted[key][name], array, rtol=1e-6, atol=1e-6)
    assert not np.array_equal(parted[0, 0]["y"], parted[1, 0]["y"])


@pytest.mark.parametrize(("room", "runs_again"), [(0, 100), (1 << 16, 0)])
def test_what_finds_room_is_held_from_one_call_to_the_next(parse, open_model, room, runs_again):
    average, counts = counted(parse, open_model, room)
    truth = [run.arrays["y"] for run in average.runs([1])]
    counts.clear()
    assert [run.arrays["y"].tobytes() for run in average.runs([1])] == [array.tobytes() for array in truth]
    assert sum(map(sum, counts)) == 100 + runs_again
    average.forget()
    counts.clear()
    assert len(list(average.runs([1]))) == len(truth)
    assert sum(map(sum, counts)) == 200


def test_the_parts_hand_on_only_what_is_read_and_a_random_node_is_drawn_anew(parse):
    graph = import_graph(parse(LATE.replace("s = Neg (x)", "s = RandomNormalLike (x)"), WEIGHTS))
    marker = next(node for node in graph.nodes if node.op == "Dropout")
    parts = split_at_noise(graph, graph.nodes, graph.outputs, marker.outputs)
    assert [node.op for node in parts.upstream] == ["MatMul", "Relu"]
    assert [node.op for node in parts.downstream] == ["RandomNormalLike", "Dropout", "MatMul", "Add", "Add"]
    assert [tensor.name for tensor in parts.given] == ["early"]
    assert {tensor.name for tensor in parts.handed_on} == {"a", "early"}


@pytest.mark.parametrize(
    ("samples", "cost", "draws"),
    [(32, 1e4, 64), (32, 40e6, 16), (32, 3e9, 6), (32, 4e9, 4), (32, 40e9, 4), (256, 4e9, 4), (1024, 40e6, 4)],
)
def test_a_costly_network_is_averaged_over_fewer_draws(samples, cost, draws):
    assert draws_for(samples, cost) == draws


def test_a_network_whose_outputs_no_noise_reaches_is_left_in_one_piece(parse, open_model):
    body = """(float[N, 4] x) => (float[N, 4] y) {
        a = MatMul (x, w) d = Dropout (a, ratio, off) unread = Relu (d) y = MatMul (a, v) }"""
    samples = SampleSet.of([{"x": RNG.normal(size=(10, 4)).astype(np.float32)}])
    runs = list(NoiseAverage(import_graph(parse(body, WEIGHTS)), samples, open_model).runs(range(4)))
    assert all(np.array_equal(run.arrays["y"], runs[0].arrays["y"]) for run in runs if run.first == runs[0].first)
    assert {run.draw for run in runs} == set(range(4))


def test_what_a_subgraph_draws_is_drawn_anew_in_each_run(parse, open_model):
    body = """(float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
        a = MatMul (x, w) s = If (on) <then_branch = t () => (float[n, 4] p) { p = RandomNormalLike (a) },
        else_branch = e () => (float[n, 4] q) { q = Neg (a) }> z = MatMul (s, v)
        d = Dropout (a, ratio, off) y = MatMul (d, v) }"""
    samples = SampleSet.of([{"x": RNG.normal(size=(2, 4)).astype(np.float32)}])
    graph = import_graph(parse(body, WEIGHTS | {"on": np.array(True)}))
    found = [run.arrays["z"] for run in NoiseAverage(graph, samples, open_model).runs(range(2))]
    assert not np.array_equal(found[0], found[-1])
