"""The order of the samples in a file says nothing: one set ordered by class, and the same set shuffled."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.estimators.exact import exact
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_model
from vsfix.graph_passes.measurement.measurement import measure
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.pipeline.data.calibration import calibration_batches, labelled_samples

LAYER, SEEDS = "layers.0.bn", 60


@pytest.fixture(scope="module")
def files(onnx_path, tmp_path_factory) -> dict[str, Path]:
    """The digits in both orders, with their labels."""
    loaded = labelled_samples(read_model(onnx_path), "digits", split="train", seed=0)
    labels = loaded.labels
    assert labels is not None
    orders = {
        "ordered": np.argsort(labels, kind="stable"),
        "shuffled": np.random.default_rng(9).permutation(len(labels)),
    }
    folder = tmp_path_factory.mktemp("digits")
    for name, order in orders.items():
        np.savez(folder / f"{name}.npz", input=loaded.inputs["input"][order], labels=labels[order])
    return {name: folder / f"{name}.npz" for name in orders}


def optimize(call, model: Path, data: Path, *options: object) -> dict:
    result = call("optimize", model, "--dry-run", "--data", data, "--eval-data", data, *options, "--json", "-")
    return json.loads(result.stdout)


@pytest.mark.long
@pytest.mark.parametrize("method", ["auto", "paired", "exact"])
def test_both_orders_have_the_same_verdict(call, onnx_path, files, method):
    found = {}
    for name, path in files.items():
        document = optimize(call, onnx_path, path, "--method", method, "--samples", 200, "--no-refine")
        repaired = [row["repaired"] for row in document["batch_norms"]]
        found[name] = document["status"], document["method"], repaired
    assert found["ordered"] == found["shuffled"]


def test_all_samples_in_another_order_give_the_same_bits(call, onnx_path, files, tmp_path):
    """Where every sample is taken, the order of the file is the only thing that could differ."""
    written = []
    for name, path in files.items():
        out = tmp_path / f"{name}.npz"
        result = call(
            *("optimize", onnx_path, "-o", tmp_path / f"{name}.onnx", "--data", path, "--statistics", out),
            *("--samples", 1297, "--method", "match", "--no-refine"),
        )
        assert result.exit_code == 0, result.stderr
        arrays = np.load(out)
        written.append({key: arrays[key].tobytes() for key in arrays})
    assert written[0] == written[1]


def test_intervals_cover_the_whole_set_alike_in_both_orders(onnx_path, files, open_model):
    graph = import_graph(read_model(onnx_path))
    images, off = np.load(files["ordered"])["input"], 1.3
    found = measure(graph, [{"input": images}], open_model)[LAYER]
    stored = next(one for one in find_batch_norms(graph) if one.name == LAYER)
    stored.with_statistics(found.mean, off * found.variance)  # every channel is off by the same factor
    model = export_model(graph, read_model(onnx_path))

    def share(samples: Iterable[Sequence[Batch]]) -> float:
        """Of the intervals that hold the truth."""
        found = [exact(graph, batches, open_model, [LAYER])[LAYER].interval for batches in samples]
        return float(np.mean([low <= 1 / off <= high for low, high in found]))

    covered = {
        name: share(
            calibration_batches(model, str(path), samples=64, batch_size=64, seed=seed) for seed in range(SEEDS)
        )
        for name, path in files.items()
    }
    assert min(covered.values()) > 0.88
    assert abs(covered["ordered"] - covered["shuffled"]) < 0.1
    assert share([{"input": images[start : start + 64]}] for start in range(0, 1200, 20)) < 0.75, "neighbours in a file"
