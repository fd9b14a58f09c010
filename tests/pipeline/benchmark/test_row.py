from __future__ import annotations

import json
from importlib.resources import files

import jsonschema
import onnx
import pytest

from vsfix.pipeline.benchmark.benchmarking import BenchmarkConfig, benchmark
from vsfix.pipeline.benchmark.latency import LatencyConfig
from vsfix.pipeline.comparison import tolerance
from vsfix.pipeline.comparison.tolerance import Tolerance
from vsfix.pipeline.host.console import json_text

HALF = BenchmarkConfig(
    "digits", samples=60, repairs=(), latency=LatencyConfig(seconds=0.0), precisions=("fp32", "fp16")
)


@pytest.fixture
def strict(monkeypatch):
    """No cast is good enough."""
    monkeypatch.setitem(tolerance.TOLERANCES, "fp16", Tolerance(min_snr_db=300.0))


def test_a_row_that_differs_names_its_first_and_its_worst_layer(strict, onnx_path):
    row = benchmark([onnx_path], HALF).rows[1]
    assert row.status == "WARN"
    names = {node.name for node in onnx.load(onnx_path).graph.node}
    assert row.layers.first.node in names
    assert row.layers.worst.snr_db <= row.layers.first.snr_db < 300
    assert (row.layers.rows, row.layers.samples) == ((), 4)


def test_a_row_that_passes_and_the_first_of_a_model_are_not_searched(onnx_path):
    assert [row.layers for row in benchmark([onnx_path], HALF).rows] == [None, None]


def test_the_layers_are_in_the_json_and_on_the_terminal(strict, onnx_path, call):
    schema = json.loads(files("vsfix.pipeline.benchmark").joinpath("benchmark.schema.json").read_text())
    document = json.loads(json_text(benchmark([onnx_path], HALF).to_dict()))
    jsonschema.validate(document, schema)
    assert document["rows"][1]["layers"]["first"]["node"]
    options = ("--seconds", 0, "--repair", "none", "--precision", "fp32", "--precision", "fp16", "--samples", 60)
    result = call("benchmark", onnx_path, "--data", "digits", *options)
    assert "layers: the first that differs is " in result.stdout


def test_where_the_graphs_have_nothing_in_common_the_reason_is_told(strict, onnx_path, monkeypatch):
    monkeypatch.setattr("vsfix.pipeline.comparison.layer_search.inner_tensors", lambda _: ())
    layers = benchmark([onnx_path], HALF).rows[1].layers
    assert (layers.first, layers.worst) == (None, None)
    assert "no tensor in common" in str(layers)
