"""Noise that the file has lost, found again: the truth is planted by torch in float64, by 2,500 other images."""

from __future__ import annotations

import functools
import re

import numpy as np
import onnx
import pytest
import torch

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import DataError, InputError, ModelError
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.measurement.measurement import measure
from vsfix.graph_passes.noise.insertion import InsertNoise
from vsfix.graph_passes.noise.marker import read_marker
from vsfix.graph_passes.noise_inference.inference import infer_noise
from vsfix.graph_passes.noise_inference.verdict import NoiseInference, Verdict

from .planted_network import BLOCKS, make_images, make_model, make_weights, plant, site_tensors


@functools.cache
def planted(site: str, kind: str, ratio: float) -> onnx.ModelProto:
    """The network trained with this noise, which its file does not mark."""
    generator = torch.Generator().manual_seed(3)

    def noise(t: torch.Tensor) -> torch.Tensor:
        shape = (*t.shape[:2], 1, 1) if kind == "feature-dropout" else t.shape
        return t * (torch.rand(shape, generator=generator, dtype=t.dtype) >= ratio) / (1 - ratio)

    return make_model(plant(make_weights(1), make_images(2500, 5), site, noise))


@functools.cache
def batches(samples: int = 320, size: int = 64) -> list[dict[str, np.ndarray]]:
    return [{"x": part} for part in np.split(make_images(samples, 8), samples // size)]


@functools.cache
def inferred(site: str, kind: str, ratio: float, open_model) -> NoiseInference:
    return infer_noise(import_graph(planted(site, kind, ratio)), batches(), open_model)


@pytest.mark.parametrize(
    ("site", "kind", "ratio"),
    [
        ("a", "dropout", 0.5),
        ("a", "dropout", 0.2),
        ("a", "feature-dropout", 0.4),
        ("b", "dropout", 0.5),
        ("b", "feature-dropout", 0.4),
    ],
)
def test_place_kind_and_ratio_are_found(open_model, site, kind, ratio):
    answer = inferred(site, kind, ratio, open_model)
    assert answer.verdict is Verdict.FOUND, answer
    assert sorted(answer.sites) == site_tensors(site)
    assert {noise.kind.value for noise in answer.sites.values()} == {kind}
    (claim,) = answer.claims
    assert claim.noise.value == pytest.approx(ratio, abs=0.04)
    assert claim.interval[0] <= ratio <= claim.interval[1]
    # What the stem makes is read by a BatchNorm too, which tells that no noise is there.
    assert (f"in {BLOCKS} of {BLOCKS + 1} blocks" if site == "a" else f"in each of {BLOCKS} blocks") in claim.place
    assert claim.after < 0.2 * claim.before
    assert not answer.is_partial


def test_a_network_without_noise_is_left_without(open_model):
    answer = inferred("a", "dropout", 0.0, open_model)
    assert (answer.verdict, answer.sites, answer.claims) == (Verdict.NO_NOISE, {}, ())
    assert all(one.before < 2 * one.chance and one.means < 0.1 for one in answer.residuals.values()), answer.residuals


def permute(graph) -> None:
    rng = np.random.default_rng(0)
    for found in find_batch_norms(graph):
        order = rng.permutation(found.channels)
        found.with_statistics(found.mean[order], found.variance[order])


def randomize(graph) -> None:
    rng = np.random.default_rng(0)
    for found in find_batch_norms(graph):
        found.with_statistics(found.mean, found.variance * np.exp(rng.normal(0, 0.5, found.channels)))


def never_set(graph) -> None:
    for found in find_batch_norms(graph):
        found.with_statistics(np.zeros(found.channels), np.ones(found.channels))


def of_one_alone(graph) -> None:
    found = find_batch_norms(graph)[3]
    found.with_statistics(found.mean, 0.5 * found.variance)


@pytest.mark.parametrize("spoil", [permute, randomize, never_set, of_one_alone])
def test_statistics_that_something_else_spoilt_are_not_explained(open_model, spoil):
    graph = import_graph(planted("a", "dropout", 0.0))
    spoil(graph)
    answer = infer_noise(graph, batches(), open_model)
    assert (answer.verdict, answer.sites) == (Verdict.NOT_EXPLAINED, {})


@pytest.mark.parametrize("factor", [1.5, 3.0])
@pytest.mark.parametrize("number", [0, 3, -1])
def test_one_factor_of_all_variances_of_a_batch_norm_is_not_taken_for_noise(open_model, number, factor):
    graph = import_graph(planted("a", "dropout", 0.0))
    found = find_batch_norms(graph)[number]
    found.with_statistics(found.mean, factor * found.variance)
    answer = infer_noise(graph, batches(), open_model)
    assert answer.verdict in (Verdict.NOT_EXPLAINED, Verdict.AMBIGUOUS), answer
    assert answer.sites == {}


def test_noise_that_looks_like_one_factor_is_told_with_both_readings(parse, open_model):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (4000, 6))
    weights = {"w": rng.normal(0, 1, (24, 6)), "mean": np.zeros(24), "one": np.ones(24), "zero": np.zeros(24)}
    lines = "h = Gemm<transB=1>(x, w) y = BatchNormalization(h, one, zero, mean, variance)"
    without = (x @ weights["w"].T).var(0)  # the means are 0: Dropout is one factor there, 1 / p
    weights = {name: value.astype(np.float32) for name, value in {**weights, "variance": without / 0.5}.items()}
    graph = import_graph(chain(parse, lines, **weights))
    parts = [{"x": part.astype(np.float32)} for part in np.split(x[:512], 8)]
    answer = infer_noise(graph, parts, open_model)
    assert answer.verdict is Verdict.AMBIGUOUS, answer
    told = re.search(r"one factor of all variances \((.*) at 'y'\).* explains as much", answer.confidence)
    assert told
    assert float(told[1]) == pytest.approx(2, rel=0.1)


def test_images_of_another_kind_are_not_explained(open_model):
    negatives = [{"x": 1 - batch["x"]} for batch in batches()]
    answer = infer_noise(import_graph(planted("b", "dropout", 0.5)), negatives, open_model)
    assert (answer.verdict, answer.sites) == (Verdict.NOT_EXPLAINED, {})
    assert "means" in answer.confidence


def chain(parse, lines: str, **weights: np.ndarray) -> onnx.ModelProto:
    return parse(f"(float[N, 6] x) => (float[N, {len(weights['mean'])}] y) {{ {lines} }}", weights)


def test_one_channel_can_not_tell_two_places_apart(parse, open_model):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (4000, 6))
    w, v = rng.normal(0, 0.5, (6, 6)), rng.normal(0, 0.5, (6, 1))
    z = (np.maximum(x @ w, 0) * (rng.random(x.shape) < 0.5) * 2) @ v
    weights = {"w": w, "v": v, "g": np.ones(1), "b": np.zeros(1), "mean": z.mean(0), "var": z.var(0)}
    lines = "h = MatMul (x, w) r = Relu (h) z = MatMul (r, v) y = BatchNormalization (z, g, b, mean, var)"
    model = chain(parse, lines, **{name: values.astype(np.float32) for name, values in weights.items()})
    parts = [{"x": part} for part in np.split(rng.normal(0, 1, (2000, 6)).astype(np.float32), 4)]
    answer = infer_noise(import_graph(model), parts, open_model)
    assert (answer.verdict, answer.sites) == (Verdict.AMBIGUOUS, {})
    assert "explains as much" in answer.confidence


def test_two_kinds_of_places_with_two_ratios_are_found_in_a_chain_of_layers(parse, open_model):
    """x -> W1 -> dropout 0.3 -> bn1 -> relu -> dropout 0.5 -> W2 -> bn2, with a dead unit and one that is nearly dead."""
    rng = np.random.default_rng(4)
    w1, w2 = rng.normal(0, 0.5, (6, 48)), rng.normal(0, 0.2, (48, 40))
    w1[:, 0] = 0
    shift = rng.normal(0, 0.3, 48)
    shift[1] = -3.0

    def forward(rows: int):
        x = rng.normal(0.4, 1, (rows, 6))
        drop = lambda t, ratio: t * (rng.random(t.shape) >= ratio) / (1 - ratio)  # noqa: E731
        z1 = drop(x @ w1 + 0.3, 0.3)
        a1 = np.maximum((z1 - z1.mean(0)) / np.sqrt(z1.var(0) + 1e-5) + shift, 0)
        return z1, drop(a1, 0.5) @ w2

    z1, z2 = forward(5000)
    names = {
        "w1": w1,
        "c": np.full(48, 0.3),
        "w2": w2,
        "g1": np.ones(48),
        "b1": shift,
        "m1": z1.mean(0),
        "v1": z1.var(0),
    }
    names |= {"g2": np.ones(40), "b2": np.zeros(40), "mean": z2.mean(0), "var": z2.var(0)}
    lines = """u = MatMul (x, w1) z1 = Add (u, c) n = BatchNormalization (z1, g1, b1, m1, v1) r = Relu (n)
        z2 = MatMul (r, w2) y = BatchNormalization (z2, g2, b2, mean, var)"""
    model = chain(parse, lines, **{name: values.astype(np.float32) for name, values in names.items()})
    parts = [{"x": part} for part in np.split(rng.normal(0.4, 1, (1000, 6)).astype(np.float32), 10)]
    answer = infer_noise(import_graph(model), parts, open_model)
    assert {site: noise.value for site, noise in answer.sites.items()} == {
        "z1": pytest.approx(0.3, abs=0.05),
        "r": pytest.approx(0.5, abs=0.07),
    }


def test_noise_in_front_of_one_block_alone_is_found_there(open_model):
    """Another ratio in another block: of the three places of a kind one has 0.5, one 0.2, one none."""
    ratios = iter((0.5, 0.0, 0.2))
    generator = torch.Generator().manual_seed(9)

    def noise(t: torch.Tensor) -> torch.Tensor:
        ratio = next(ratios)
        return t * (torch.rand(t.shape, generator=generator, dtype=t.dtype) >= ratio) / (1 - ratio)

    model = make_model(plant(make_weights(1), make_images(2500, 5), "a", noise))
    answer = infer_noise(import_graph(model), batches(), open_model)
    assert {site: noise.value for site, noise in answer.sites.items()} == {
        "c0": pytest.approx(0.5, abs=0.04),
        "c2": pytest.approx(0.2, abs=0.04),
    }
    assert all("at one place" in claim.place for claim in answer.claims)


@pytest.mark.parametrize("named", [True, False])
def test_one_noisy_tensor_that_two_batch_norms_read_is_one_noise(parse, open_model, named):
    """x -> W -> dropout 0.4 -> two BatchNorms on the same draw; the last reads neither of their sums."""
    rng = np.random.default_rng(2)
    w = rng.normal(0, 0.5, (6, 40))
    x = rng.normal(0.5, 1, (6000, 6))
    z = (x @ w) * (rng.random((6000, 40)) >= 0.4) / 0.6
    weights = {"w": w, "m1": z.mean(0), "v1": z.var(0), "m2": z.mean(0), "v2": z.var(0)}
    weights |= {"g": np.ones(40), "b": np.zeros(40), "g2": np.full(40, 2.0), "b2": np.ones(40)}
    first, second = ("[one] ", "[two] ") if named else ("", "")
    body = f"""(float[N, 6] x) => (float[N, 40] y, float[N, 40] u) {{ z = MatMul (x, w)
        {first}y = BatchNormalization (z, g, b, m1, v1) {second}u = BatchNormalization (z, g2, b2, m2, v2) }}"""
    model = parse(body, {name: values.astype(np.float32) for name, values in weights.items()})
    parts = [{"x": part} for part in np.split(rng.normal(0.5, 1, (640, 6)).astype(np.float32), 10)]
    answer = infer_noise(import_graph(model), parts, open_model)
    assert {site: noise.value for site, noise in answer.sites.items()} == {"z": pytest.approx(0.4, abs=0.05)}
    InsertNoise(answer.sites, tensors_only=True)(import_graph(model))


def test_the_order_of_the_samples_changes_no_verdict(open_model):
    images = np.concatenate([batch["x"] for batch in batches()])
    by_brightness = images[np.argsort(images.mean(axis=(1, 2, 3)))]
    ordered = [{"x": part} for part in np.split(by_brightness, 5)]
    answers = [
        infer_noise(import_graph(planted("a", "dropout", 0.5)), parts, open_model) for parts in (batches(), ordered)
    ]
    assert [answer.verdict for answer in answers] == [Verdict.FOUND] * 2
    first, second = (next(iter(answer.claims)).noise.value for answer in answers)
    assert first == pytest.approx(second, abs=0.02)


def test_the_answer_can_be_inserted_and_two_searches_give_the_same(open_model):
    model = planted("a", "dropout", 0.5)
    first = inferred("a", "dropout", 0.5, open_model)
    second = infer_noise(import_graph(model), batches(), open_model)
    assert (first.sites, first.description, first.confidence) == (second.sites, second.description, second.confidence)
    graph = import_graph(model)
    InsertNoise(first.sites, tensors_only=True)(graph)
    assert sum(read_marker(node) is not None for node in graph.nodes) == len(site_tensors("a"))


def test_the_graph_is_not_changed(open_model):
    model = planted("a", "dropout", 0.5)
    graph = import_graph(model)
    before = export_model(graph, model).SerializeToString()
    infer_noise(graph, batches(128, 64), open_model)
    assert export_model(graph, model).SerializeToString() == before


def test_a_file_that_marks_its_noise_needs_no_inference(residual, images, open_model):
    with pytest.raises(InputError, match="marks its noise already"):
        infer_noise(import_graph(residual), [{"x": images}], open_model)


def test_what_can_not_be_inferred_from_is_refused(parse, open_model):
    model = planted("a", "dropout", 0.5)
    with pytest.raises(DataError, match="fewer than two samples"):
        infer_noise(import_graph(model), [{"x": make_images(1, 0)}], open_model)
    dead = import_graph(model)
    for found in find_batch_norms(dead):
        found.with_statistics(found.mean, np.zeros(found.channels))
    with pytest.raises(DataError, match="no BatchNorm varies enough"):
        infer_noise(dead, batches(128, 64), open_model)
    without = parse("(float[N, 3] x) => (float[N, 3] y) {\n y = Relu (x)\n}", {})
    with pytest.raises(ModelError, match="no BatchNormalization"):
        infer_noise(import_graph(without), batches(), open_model)


def test_what_was_measured_already_is_not_measured_again(open_model):
    """The glance is the whole answer for a network without noise, and then nothing is run."""
    graph, opened = import_graph(planted("a", "dropout", 0.0)), []

    def opening(model):
        opened.append(model)
        return open_model(model)

    measured = measure(graph, batches(), open_model)
    answer = infer_noise(graph, batches(), opening, measured=measured)
    assert not opened
    assert answer == inferred("a", "dropout", 0.0, open_model)
