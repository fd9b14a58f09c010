"""Noise that the file has lost, found again: the truth is planted by torch in float64, by 2,500 other images."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
import torch

from vsfix.graph_passes.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import DataError, InputError, ModelError
from vsfix.graph_passes.marker import read_marker
from vsfix.graph_passes.mismatch import MismatchProbe, mismatch_of
from vsfix.graph_passes.model_file import export_model, import_graph
from vsfix.graph_passes.noise import Noise, NoiseKind
from vsfix.graph_passes.noise_inference import NoiseInference, Verdict, infer_noise
from vsfix.graph_passes.noise_insertion import InsertNoise
from vsfix.graph_passes.noise_search import InferenceConfig

from .planted_network import make_images, make_model, make_weights, plant, site_tensors

HALF = Noise(NoiseKind.DROPOUT, 0.5)
SHORT = InferenceConfig(ladder=(0.2, 0.5), coarse_samples=160, finalists=2)


@functools.cache
def planted(site: str, kind: str, ratio: float) -> onnx.ModelProto:
    """The network trained with this noise, which its file does not mark."""
    generator = torch.Generator().manual_seed(3)

    def noise(t: torch.Tensor) -> torch.Tensor:
        shape = (*t.shape[:2], 1, 1) if kind == "feature-dropout" else t.shape
        return t * (torch.rand(shape, generator=generator, dtype=t.dtype) >= ratio) / (1 - ratio)

    return make_model(plant(make_weights(1), make_images(2500, 5), site, noise))


@functools.cache
def batches(samples: int = 320, size: int = 80) -> list[dict[str, np.ndarray]]:
    return [{"x": part} for part in np.split(make_images(samples, 8), samples // size)]


@functools.cache
def inferred(site: str, kind: str, ratio: float, open_model) -> NoiseInference:
    return infer_noise(import_graph(planted(site, kind, ratio)), batches(), open_model, SHORT)


def sum_of_squares(model: onnx.ModelProto, sites: dict[str, Noise], open_model) -> float:
    probe = MismatchProbe(import_graph(model), batches(), open_model, noise_seed=0)
    _, weights = probe.evidence()
    return mismatch_of(probe.residuals(sites) * weights)


@pytest.mark.parametrize(
    ("site", "kind", "ratio"),
    [("a", "dropout", 0.5), ("a", "dropout", 0.2), ("b", "dropout", 0.5), ("b", "feature-dropout", 0.4)],
)
def test_place_kind_and_ratio_are_found(open_model, site, kind, ratio):
    answer = inferred(site, kind, ratio, open_model)
    assert answer.verdict is Verdict.FOUND, answer
    assert list(answer.sites) == site_tensors(site)
    assert {noise.kind.value for noise in answer.sites.values()} == {kind}
    assert answer.best.noise.value == pytest.approx(ratio, abs=0.04)
    assert answer.interval[0] <= ratio <= answer.interval[1]
    assert "high" in answer.confidence
    assert answer.best.mismatch < 0.1 * answer.without
    assert answer.runner_up.mismatch > 3 * answer.best.mismatch


def test_a_network_without_noise_is_left_without(open_model):
    answer = infer_noise(import_graph(planted("a", "dropout", 0.0)), batches(), open_model)
    assert (answer.verdict, dict(answer.sites)) == (Verdict.NO_NOISE, {})
    assert answer.without == pytest.approx(answer.expected, rel=0.5)


def permute(graph) -> None:
    rng = np.random.default_rng(0)
    for found in find_batch_norms(graph):
        order = rng.permutation(found.channels)
        found.with_statistics(found.mean[order], found.variance[order])


def randomize(graph) -> None:
    rng = np.random.default_rng(0)
    for found in find_batch_norms(graph):
        found.with_statistics(found.mean, found.variance * np.exp(rng.normal(0, 0.5, found.channels)))


@pytest.mark.parametrize("spoil", [permute, randomize])
def test_statistics_that_something_else_spoilt_are_not_explained(open_model, spoil):
    graph = import_graph(planted("a", "dropout", 0.0))
    spoil(graph)
    answer = infer_noise(graph, batches(), open_model, SHORT)
    assert (answer.verdict, dict(answer.sites)) == (Verdict.NOT_EXPLAINED, {})


def test_images_of_another_kind_are_not_explained(open_model):
    negatives = [{"x": 1 - batch["x"]} for batch in batches()]
    answer = infer_noise(import_graph(planted("b", "dropout", 0.5)), negatives, open_model, SHORT)
    assert (answer.verdict, dict(answer.sites)) == (Verdict.NOT_EXPLAINED, {})


def test_one_channel_can_not_tell_two_places_apart(parse, open_model):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (4000, 6))
    w, v = rng.normal(0, 0.5, (6, 6)), rng.normal(0, 0.5, (6, 1))
    z = (np.maximum(x @ w, 0) * (rng.random(x.shape) < 0.5) * 2) @ v
    weights = {"w": w, "v": v, "g": np.ones(1), "b": np.zeros(1), "mean": z.mean(0), "var": z.var(0)}
    body = """(float[N, 6] x) => (float[N, 1] y) {
        h = MatMul (x, w)
        r = Relu (h)
        z = MatMul (r, v)
        y = BatchNormalization (z, g, b, mean, var)
    }"""
    model = parse(body, {name: values.astype(np.float32) for name, values in weights.items()})
    parts = [{"x": part} for part in np.split(rng.normal(0, 1, (2000, 6)).astype(np.float32), 4)]
    answer = infer_noise(import_graph(model), parts, open_model)
    assert (answer.verdict, dict(answer.sites)) == (Verdict.AMBIGUOUS, {})
    assert "; or " in answer.description


def test_the_mismatch_is_chance_at_the_truth_and_more_at_a_wrong_ratio(open_model):
    model = planted("b", "dropout", 0.5)
    at = {
        t: sum_of_squares(model, dict.fromkeys(site_tensors("b"), Noise(HALF.kind, t)), open_model) for t in (0.4, 0.5)
    }
    elsewhere = sum_of_squares(model, dict.fromkeys(site_tensors("a"), HALF), open_model)
    assert 3 * at[0.5] < at[0.4] < elsewhere


def test_the_answer_can_be_inserted_and_two_searches_give_the_same(open_model):
    model = planted("a", "dropout", 0.5)
    first = inferred("a", "dropout", 0.5, open_model)
    second = infer_noise(import_graph(model), batches(), open_model, SHORT)
    assert first == second
    graph = import_graph(model)
    InsertNoise(first.sites, tensors_only=True)(graph)
    assert sum(read_marker(node) is not None for node in graph.nodes) == len(site_tensors("a"))


def test_the_graph_is_not_changed(open_model):
    model = planted("a", "dropout", 0.5)
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString()
    infer_noise(graph, batches(80, 40), open_model, SHORT)
    assert export_model(graph, model).SerializeToString() == before


def test_a_file_that_marks_its_noise_needs_no_inference(residual, images, open_model):
    with pytest.raises(InputError, match="marks its noise already"):
        infer_noise(import_graph(residual), [{"x": images}], open_model)


def test_what_can_not_be_inferred_from_is_refused(parse, open_model):
    with pytest.raises(DataError, match="fewer than two samples"):
        infer_noise(import_graph(planted("a", "dropout", 0.5)), [{"x": make_images(1, 0)}], open_model)
    without = parse("(float[N, 3] x) => (float[N, 3] y) {\n y = Relu (x)\n}", {})
    with pytest.raises(ModelError, match="no BatchNormalization"):
        infer_noise(import_graph(without), batches(), open_model)


@pytest.mark.parametrize("wrong", [{"ladder": ()}, {"ladder": (0.5, 0.3)}, {"ladder": (0.5, 1.0)}, {"finalists": 0}])
def test_a_configuration_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(InputError):
        InferenceConfig(**wrong)
