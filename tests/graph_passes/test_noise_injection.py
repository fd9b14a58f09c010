from __future__ import annotations

import numpy as np
import pytest
from vsfix.graph_passes.marker import read_marker, write_marker
from vsfix.graph_passes.model_file import export_model, import_graph
from vsfix.graph_passes.noise import Noise
from vsfix.graph_passes.noise_injection import inject_noise


def noisy_runner(parse, open_model, noise: Noise, seed: int = 0):
    """A model that puts `noise` on its input of shape (N, C, H, W)."""
    source = parse("(float[N, C, H, W] x) => (float[N, C, H, W] y) { y = Abs (x) }", {})
    graph = import_graph(source)
    output, behind = graph.outputs[0], graph.nodes[0].outputs[0]
    assert output is behind
    inner = graph.nodes[0].outputs[0].__class__("inner", np.float32)
    graph.nodes[0].outputs[0] = inner
    graph.nodes.append(write_marker("drop", noise, inner, output))
    assert inject_noise(graph, seed) == 1
    assert all(read_marker(node) is None for node in graph.nodes)
    return open_model(export_model(graph, source))


@pytest.mark.parametrize("text", ["dropout:0.5", "dropout:0.2", "uout:0.3", "feature-dropout:0.4"])
def test_noise_is_unbiased_and_has_its_variance(parse, open_model, text):
    noise = Noise.parse(text)
    x = np.ones((4000, 40, 2, 2), dtype=np.float32)
    factor = noisy_runner(parse, open_model, noise).run({"x": x})["y"].astype(np.float64)
    draws = factor[:, :, 0, 0].size if text.startswith("feature") else factor.size
    assert factor.mean() == pytest.approx(1, abs=5 * np.sqrt(noise.variance / draws))
    assert factor.var() == pytest.approx(noise.variance, rel=12 / np.sqrt(draws))
    assert factor.var() != pytest.approx(1.1 * noise.variance, rel=12 / np.sqrt(draws)), "a tenth off must be seen"


def test_dropout_is_zero_or_scaled_and_independent_between_elements(parse, open_model):
    x = np.full((50, 8, 4, 4), 3.0, dtype=np.float32)
    y = noisy_runner(parse, open_model, Noise.parse("dropout:0.25")).run({"x": x})["y"]
    assert set(np.unique(y)) == {np.float32(0), np.float32(4)}
    assert len(np.unique(y.reshape(50, 8, -1), axis=0)) == 50


def test_feature_dropout_drops_whole_channels(parse, open_model):
    x = np.ones((60, 8, 4, 4), dtype=np.float32)
    y = noisy_runner(parse, open_model, Noise.parse("feature-dropout:0.5")).run({"x": x})["y"]
    assert (y == y[:, :, :1, :1]).all()
    assert 0 < (y[:, :, 0, 0] == 0).mean() < 1


def test_runs_of_one_session_differ_and_sessions_repeat(parse, open_model):
    x = np.ones((4, 8, 4, 4), dtype=np.float32)
    first = noisy_runner(parse, open_model, Noise.parse("dropout:0.5"), seed=1)
    again = noisy_runner(parse, open_model, Noise.parse("dropout:0.5"), seed=1)
    other = noisy_runner(parse, open_model, Noise.parse("dropout:0.5"), seed=2)
    runs = [first.run({"x": x})["y"] for _ in range(2)]
    assert not np.array_equal(runs[0], runs[1])
    assert all(np.array_equal(run, again.run({"x": x})["y"]) for run in runs)
    assert not np.array_equal(runs[0], other.run({"x": x})["y"])


def test_two_markers_draw_apart(residual, open_model):
    graph = import_graph(residual)
    assert inject_noise(graph, 0) == 2
    seeds = [node.attrs["seed"] for node in graph.nodes if node.op == "RandomUniformLike"]
    assert len(set(seeds)) == 2
