"""An engine in a benchmark, on fakes of a GPU and TensorRT, which nothing else can run here."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files

import jsonschema
import numpy as np
import onnx
import pytest

from vsfix.pipeline.benchmark.benchmarking import BenchmarkConfig, benchmark
from vsfix.pipeline.benchmark.latency import LatencyConfig
from vsfix.pipeline.benchmark.row_latency import GpuWatch
from vsfix.pipeline.host.console import json_text
from vsfix.pipeline.pages.benchmark_page import benchmark_report
from vsfix.pipeline.pages.page import render_report


@pytest.fixture
def found(machine, tmp_path, monkeypatch):
    """An ONNX file, and an engine of it."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> m (float[N, 3] x) => (float[N, 5] y) { y = Gemm (x, w) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=(3, 5)).astype(np.float32), "w"))
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(12, 3)).astype(np.float32), labels=rng.integers(0, 5, 12))
    machine.install()
    state = {"SM clock": "900 MHz", "throttle reasons": "software power cap"}
    monkeypatch.setattr("vsfix.pipeline.benchmark.row_latency.GpuWatch", lambda: GpuWatch(lambda: state))
    latency = LatencyConfig(seconds=0.0001, min_runs=20, warm_up_seconds=0)
    backends = ("onnxruntime", "tensorrt")
    config = BenchmarkConfig(str(tmp_path / "d.npz"), repairs=(), latency=latency, latency_batches=(1, 4), batch_size=4)
    return benchmark([tmp_path / "net.onnx"], replace(config, backends=backends))


def test_an_engine_is_timed_with_a_cuda_graph_and_without(found):
    assert [(row.status, row.reasons) for row in found.rows] == [("PASS", ())] * 2
    times = [(time.batch_size, time.cuda_graph, time.clock) for time in found.rows[1].latencies]
    assert times == [(n, graph, "cuda events") for n in (1, 4) for graph in (True, False)]
    assert [time.cuda_graph for time in found.rows[0].latencies] == [None, None]


def test_its_json_fits_the_schema(found):
    schema = json.loads(files("vsfix.pipeline.benchmark").joinpath("benchmark.schema.json").read_text())
    document = json.loads(json_text(found.to_dict()))
    jsonschema.validate(document, schema)
    assert document["rows"][1]["latencies"][0]["phases"]["compute_ms"] > 0


def test_the_page_shows_its_parts_and_what_slowed_the_gpu_down(found):
    page = render_report(benchmark_report(found))
    for words in ("host to device, ms", "compute, ms", "device to host, ms", "enqueue, ms", ", no CUDA graph"):
        assert words in page
    assert "the GPU was slowed down while batch 4 ran: software power cap" in page
    assert "running batch 1" in page
