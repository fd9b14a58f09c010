"""Which fault a file has beside noise: planted in a network whose statistics torch made, in float64."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
import torch

from tests.graph_passes.noise_inference.planted_network import (
    make_images,
    make_model,
    make_weights,
    plant,
    site_tensors,
)
from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.io.model_file import export_model, import_graph
from vsfix.graph_passes.noise.insertion import InsertNoise
from vsfix.graph_passes.noise.marker import EXPORT_METADATA_KEY
from vsfix.graph_passes.noise.noise import Noise, NoiseKind
from vsfix.pipeline.inspection.fault import FaultKind, find_fault
from vsfix.pipeline.inspection.inspection import InspectionConfig, inspect_model
from vsfix.pipeline.inspection.lost_noise import infer_lost_noise
from vsfix.pipeline.inspection.preparation import prepare_model
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig


@functools.cache
def network(ratio: float = 0.0) -> onnx.ModelProto:
    generator = torch.Generator().manual_seed(3)

    def noise(t: torch.Tensor) -> torch.Tensor:
        return t * (torch.rand(t.shape, generator=generator, dtype=t.dtype) >= ratio) / (1 - ratio)

    return make_model(plant(make_weights(1), make_images(2500, 5), "a", noise))


@functools.cache
def images() -> np.ndarray:
    return make_images(320, 8)


def as_batches(array: np.ndarray, size: int = 64) -> list[dict[str, np.ndarray]]:
    return [{"x": array[start : start + size]} for start in range(0, len(array), size)]


def never_set(graph) -> None:
    for found in find_batch_norms(graph)[2:4]:
        found.with_statistics(np.zeros(found.channels), np.ones(found.channels))


def stale(graph) -> None:
    rng = np.random.default_rng(0)
    for found in find_batch_norms(graph):
        factor = np.exp(rng.normal(0, 0.4, found.channels))
        found.with_statistics(found.mean + 0.3 * np.sqrt(found.variance), found.variance * factor)


@pytest.mark.parametrize("samples", [320, 32])
def test_a_whole_file_has_none(open_model, samples):
    assert find_fault(import_graph(network()), as_batches(images()[:samples]), open_model) is None


@pytest.mark.parametrize(
    ("spoil", "kind", "off", "words"),
    [
        (never_set, FaultKind.UNSET, ("bn11", "bn12"), "never set"),
        (stale, FaultKind.STALE, ("bn01", "bn02", "bn11", "bn12", "bn21", "bn22", "bn"), "stale"),
    ],
)
def test_spoilt_statistics_are_told_by_what_they_are(open_model, spoil, kind, off, words):
    graph = import_graph(network())
    spoil(graph)
    fault = find_fault(graph, as_batches(images()), open_model)
    assert fault is not None
    assert (fault.kind, fault.batch_norms, fault.total) == (kind, off, 7)
    assert words in fault.sentence
    assert "--method exact --layers all" in fault.sentence


@pytest.mark.parametrize(
    ("scale", "offset", "words"),
    [
        (255.0, 0.0, "0..255 where the training had 0..1"),
        (1 / 255, 0.0, "0..1 where it had 0..255"),
        (1.0, 0.8, "centred differently"),
        (0.4, -0.3, "would explain it"),
    ],
)
def test_another_preprocessing_is_told_with_the_map_that_explains_it(open_model, scale, offset, words):
    wrong = (images() * scale + offset).astype(np.float32)
    fault = find_fault(import_graph(network()), as_batches(wrong), open_model)
    assert fault is not None
    assert fault.kind is FaultKind.INPUT
    assert fault.input_map is not None
    assert fault.input_map.scale == pytest.approx(1 / scale, rel=0.1)
    assert fault.input_map.offset == pytest.approx(-offset / scale, abs=0.1)
    assert words in fault.sentence
    mapped = fault.input_map.apply(as_batches(wrong))
    assert find_fault(import_graph(network()), mapped, open_model) is None


def test_means_that_are_off_behind_a_batch_norm_that_fits_are_no_fault_of_the_input(parse, open_model):
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (4000, 6))
    w = rng.normal(0.4, 1, (6, 24))
    hidden = ((x - x.mean(0)) / x.std(0)) @ w
    one, zero = np.ones(24), np.zeros(24)
    stored = hidden.mean(0) + 0.8 * w.sum(0) / np.abs(w.sum(0)).mean() * hidden.std(0)  # as if the input were moved
    weights = {"w": w, "m0": x.mean(0), "v0": x.var(0), "m": stored, "v": hidden.var(0), "s": one, "b": zero}
    body = """(float[N, 6] x) => (float[N, 24] z) { a = BatchNormalization (x, s6, b6, m0, v0) h = MatMul (a, w)
        y = BatchNormalization (h, s, b, m, v) r = Relu (y) z = BatchNormalization (r, s, b, m2, v2) }"""
    after = np.maximum((hidden - hidden.mean(0)) / hidden.std(0), 0)
    weights |= {"s6": np.ones(6), "b6": np.zeros(6), "m2": after.mean(0), "v2": after.var(0)}
    graph = import_graph(parse(body, {name: value.astype(np.float32) for name, value in weights.items()}))
    found = find_fault(graph, as_batches(x[:320].astype(np.float32)), open_model)
    assert found is not None
    assert (found.kind, found.batch_norms) == (FaultKind.STALE, ("y",))


def test_data_of_another_domain_is_no_affine_map(open_model):
    noise = np.random.default_rng(0).normal(0.3, 0.4, images().shape).astype(np.float32)
    fault = find_fault(import_graph(network()), as_batches(noise), open_model)
    assert fault is not None
    assert fault.input_map is None


def test_noise_that_is_marked_is_no_fault_and_hides_none(open_model):
    graph = import_graph(network(0.5))
    InsertNoise(dict.fromkeys(site_tensors("a"), Noise(NoiseKind.DROPOUT, 0.5)))(graph)
    assert find_fault(graph, as_batches(images()), open_model) is None
    stale(graph)
    fault = find_fault(graph, as_batches(images()), open_model)
    assert fault is not None
    assert fault.kind is FaultKind.STALE


def test_two_faults_at_once_are_both_named(open_model):
    prepared = prepare_model(network(0.5))
    wrong = as_batches((255 * images()).astype(np.float32))
    lost = infer_lost_noise(prepared, wrong, open_model, max_memory=1 << 30)
    assert lost.fault is not None
    assert lost.fault.kind is FaultKind.INPUT
    assert "0..255" in lost.question
    assert "Mapped so, the statistics tell of lost noise too: dropout:0.5" in lost.question


def test_variances_that_training_leaves_unsure_do_not_bend_the_map_toward_noise(open_model):
    graph = import_graph(network())
    first = find_batch_norms(graph)[0]
    unsure = np.exp(np.random.default_rng(0).normal(0, 0.15, first.channels))
    first.with_statistics(first.mean, 1.1 * unsure * first.variance)
    fault = find_fault(graph, as_batches((40 * images() + 15).astype(np.float32)), open_model)
    assert fault is not None
    assert fault.input_map is not None
    assert fault.input_map.scale == pytest.approx(1 / 40, rel=0.08)
    assert fault.input_map.offset == pytest.approx(-15 / 40, rel=0.08)


def test_noise_upstream_of_the_first_batch_norm_does_not_bend_the_map(parse, open_model):
    """Dropout 0.5 right after the first layer, lost, and data that was not divided by 255."""
    rng = np.random.default_rng(0)
    w, x = rng.normal(0, 0.4, (6, 30)), rng.uniform(0, 1, (4000, 6))
    z = (x @ w + 0.1) * (rng.random((4000, 30)) < 0.5) * 2
    h = np.maximum((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5), 0)
    v = rng.normal(0, 0.3, (30, 20))
    u = h @ v
    weights = {"w": w, "c": np.full(30, 0.1), "v": v, "g1": np.ones(30), "b1": np.zeros(30), "m1": z.mean(0)}
    weights |= {"v1": z.var(0), "g2": np.ones(20), "b2": np.zeros(20), "m2": u.mean(0), "v2": u.var(0)}
    body = """(float[N, 6] x) => (float[N, 20] y) { p = MatMul (x, w) q = Add (p, c)
        n = BatchNormalization (q, g1, b1, m1, v1) r = Relu (n) s = MatMul (r, v)
        y = BatchNormalization (s, g2, b2, m2, v2) }"""
    model = parse(body, {name: values.astype(np.float32) for name, values in weights.items()})
    raw = (255 * rng.uniform(0, 1, (512, 6))).astype(np.float32)
    lost = infer_lost_noise(prepare_model(model), as_batches(raw), open_model, max_memory=1 << 30)
    assert lost.fault is not None
    assert lost.fault.input_map is not None
    assert lost.fault.input_map.scale == pytest.approx(1 / 255, rel=0.1)
    assert "0..255" in lost.question
    assert "lost noise too: dropout:0." in lost.question


def test_what_was_never_set_hides_no_lost_noise(open_model):
    prepared = prepare_model(network(0.5))
    stem = find_batch_norms(prepared.graph)[0]
    stem.with_statistics(np.zeros(stem.channels), np.ones(stem.channels))
    lost = infer_lost_noise(prepared, as_batches(images()), open_model, max_memory=1 << 30)
    assert lost.fault is not None
    assert lost.fault.kind is FaultKind.UNSET
    assert "The others tell of lost noise too: dropout:0." in lost.question


def test_a_repair_on_data_of_another_preprocessing_is_refused(open_model):
    graph = import_graph(network(0.5))
    InsertNoise(dict.fromkeys(site_tensors("a"), Noise(NoiseKind.DROPOUT, 0.5)))(graph)
    wrong = as_batches((255 * images()).astype(np.float32))
    with pytest.raises(CheckFailedError, match="refused: the data is not preprocessed"):
        repair_model(export_model(graph, network(0.5)), wrong, open_model, RepairConfig(refine=False))


def test_too_few_samples_tell_no_fault(open_model):
    graph = import_graph(network())
    stale(graph)
    assert find_fault(graph, as_batches(images()[:12]), open_model) is None


def test_the_order_of_the_samples_changes_no_fault(open_model):
    graph = import_graph(network())
    by_brightness = images()[np.argsort(images().mean(axis=(1, 2, 3)))]
    assert find_fault(graph, as_batches(by_brightness), open_model) is None
    stale(graph)
    kinds = [find_fault(graph, as_batches(each), open_model).kind for each in (images(), by_brightness)]
    assert kinds == [FaultKind.STALE] * 2


@pytest.mark.parametrize("vouched", [True, False])
def test_inspect_names_the_fault_of_every_file(open_model, vouched):
    graph = import_graph(network())
    stale(graph)
    model = export_model(graph, network(), {EXPORT_METADATA_KEY: "0"} if vouched else {})
    found = inspect_model(model, as_batches(images()), open_model, InspectionConfig())
    assert found.fault is not None
    assert found.fault.kind is FaultKind.STALE
