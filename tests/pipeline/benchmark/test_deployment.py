from __future__ import annotations

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.errors import MissingComponentError
from vsfix.pipeline.benchmark.deployment import Deployments
from vsfix.pipeline.benchmark.variant import Variant
from vsfix.pipeline.verification.model_description import describe_model

INPUT = {"input": np.random.default_rng(2).normal(size=(5, 1, 8, 8)).astype(np.float32)}


@pytest.fixture
def deployments():
    with Deployments("input", (1, 16, 64), lambda model: pytest.fail("nothing here is quantised")) as files:
        yield files


def test_a_file_in_its_own_precision_runs_as_it_is(deployments, onnx_path):
    found = deployments.make(Variant(describe_model(onnx_path), "onnxruntime", "fp32"))
    assert (found.path, found.cast, found.build_seconds) == (onnx_path, None, None)
    assert found.size == onnx_path.stat().st_size


def test_a_cast_file_holds_the_type_and_is_made_once(deployments, onnx_path):
    half = Variant(describe_model(onnx_path), "onnxruntime", "fp16")
    found = deployments.make(half)
    types = {tensor.data_type for tensor in onnx.load(found.path).graph.initializer if len(tensor.dims) == 2}
    assert types == {onnx.TensorProto.FLOAT16}
    assert found.cast is not None
    assert found.cast.precision == "fp16"
    assert deployments.make(half) is found


def test_every_row_opens_and_a_cast_one_differs_by_its_rounding(deployments, onnx_path, checkpoint_path):
    model = describe_model(onnx_path)
    outputs = []
    for variant in (Variant(describe_model(checkpoint_path), "torch", "fp32"), Variant(model, "onnxruntime", "fp16")):
        with deployments.open(variant) as runner:
            outputs.append(next(iter(runner.run(INPUT).values())))
    error = np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max()
    assert 1e-5 < error < 5e-3


def test_the_files_go_with_the_benchmark(onnx_path):
    with Deployments("input", (1, 16, 64), lambda model: []) as files:
        path = files.make(Variant(describe_model(onnx_path), "onnxruntime", "fp16")).path
        assert path.exists()
    assert not path.exists()


def test_no_engine_is_built_where_none_can_run(deployments, onnx_path, monkeypatch):
    monkeypatch.setattr("vsfix.pipeline.benchmark.deployment.build_engine", lambda *_: pytest.fail("built"))

    def no_gpu():
        raise MissingComponentError("no GPU")

    monkeypatch.setattr("vsfix.pipeline.benchmark.deployment.open_library", lambda runtime: None)
    monkeypatch.setattr("vsfix.pipeline.benchmark.deployment.open_cuda", no_gpu)
    with pytest.raises(MissingComponentError, match="no GPU"):
        deployments.make(Variant(describe_model(onnx_path), "tensorrt", "fp32"))


def test_an_engine_is_built_for_the_batch_sizes_that_it_will_meet(deployments, onnx_path, monkeypatch):
    monkeypatch.setattr("vsfix.pipeline.benchmark.deployment.open_library", lambda runtime: None)
    monkeypatch.setattr("vsfix.pipeline.benchmark.deployment.open_cuda", lambda: None)
    built = []

    class Report:
        build_seconds = 1.5

    def build(source, path, config):
        built.append((onnx.load(source), config))
        path.write_bytes(b"plan")
        return Report()

    monkeypatch.setattr("vsfix.pipeline.benchmark.deployment.build_engine", build)
    found = deployments.make(Variant(describe_model(onnx_path), "tensorrt", "fp16"))
    ((source, config),) = built
    assert (found.size, found.build_seconds) == (4, 1.5)
    assert (config.runtime, config.precision) == ("tensorrt", "fp16")
    shapes = (config.shapes.minimum, config.shapes.optimum, config.shapes.maximum)
    assert shapes == ("input:1x1x8x8", "input:16x1x8x8", "input:64x1x8x8")
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in source.graph.initializer)
