from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pytest

from tests.pipeline.tensorrt.fake_cuda import FakeCuda
from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.building.build_config import BuildConfig
from vsfix.pipeline.building.building import build_engine
from vsfix.pipeline.tensorrt.engine_file import sidecar_path
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions
from vsfix.pipeline.verification.model_description import describe_model, name_step
from vsfix.pipeline.verification.tappable import open_tappable
from vsfix.pipeline.verification.verification_files import VerificationConfig, verify_files

BODY = """(float[N, 3] x) => (float[N, 4] y) {
    h = Gemm <transB: int = 1> (x, "fc1.weight", "fc1.bias")
    r = Relu (h)
    y = Gemm <transB: int = 1> (r, "fc2.weight", "fc2.bias")
}"""
SHAPES = ShapeOptions(None, "x:1x3", "x:4x3", "x:16x3")


def save(parse, path, factor=1.0):
    rng = np.random.default_rng(0)
    shapes = {"fc1.weight": (5, 3), "fc1.bias": (5,), "fc2.weight": (4, 5), "fc2.bias": (4,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights["fc2.weight"] *= np.float32(factor)
    onnx.save(parse(BODY, weights), path)
    return path


def rewrite(engine, change):
    path = sidecar_path(engine)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.fixture
def engine(machine, parse, tmp_path):
    """An engine of the fake TensorRT, and the file that it was built from."""
    machine.install("10")
    model = save(parse, tmp_path / "m.onnx")
    build_engine(model, tmp_path / "e.plan", BuildConfig(shapes=SHAPES))
    return tmp_path / "e.plan", model


def test_an_engine_says_what_its_model_said(engine):
    plan, model = (describe_model(path) for path in engine)
    assert (plan.kind, plan.backend, plan.precision) == ("engine", "tensorrt", "fp32")
    assert (plan.input_names, plan.input_shapes) == (model.input_names, model.input_shapes) == (("x",), ((3,),))
    assert (plan.digest, plan.smallest_batch, plan.largest_batch) == (model.digest, 1, 16)
    assert name_step(model, plan) == "runtime"


@pytest.mark.parametrize(
    ("network", "tensor_float", "precision"),
    [
        ({"CONVOLUTION": {"HALF": 2, "FLOAT": 9}}, False, "fp16"),
        ({"SCALE": {"BF16": 1}, "CONVOLUTION": {"HALF": 2}}, True, "bf16"),
        ({"QUANTIZE": {"INT8": 1}, "CONVOLUTION": {"HALF": 1}}, False, "int8"),
        ({"CONSTANT": {"INT8": 1, "HALF": 1}, "CONVOLUTION": {"FLOAT": 1}}, False, "fp32"),
        ({"CONVOLUTION": {"FLOAT": 1}}, True, "tf32"),
    ],
)
def test_an_engine_is_as_coarse_as_the_coarsest_of_its_layers_that_compute(engine, network, tensor_float, precision):
    rewrite(engine[0], lambda document: document["precision"].update(network=network, tensor_float=tensor_float))
    assert describe_model(engine[0]).precision == precision


def test_an_engine_takes_no_larger_batch_than_each_of_its_inputs(engine):
    def add_input(document):
        document["inputs"].append(document["inputs"][0] | {"name": "z"})
        document["profile"]["z"] = {"minimum": [1, 3], "optimum": [2, 3], "maximum": [7, 3]}

    rewrite(engine[0], add_input)
    assert describe_model(engine[0]).largest_batch == 7


def test_an_engine_is_verified_against_its_model_in_batches_that_it_takes(engine):
    plan, model = engine
    result = verify_files(plan, model, VerificationConfig(samples=40, via=(model,)))
    (found,) = result.results
    assert (result.status, found.candidate) == ("PASS", "tensorrt 10.13.0 (sm89)")
    assert [step.step for step in found.budget] == ["runtime", "runtime", "noise floor"]


def test_the_layer_in_which_an_engine_differs_is_found_in_an_engine_built_anew(engine, parse, tmp_path):
    plan, _ = engine
    other = save(parse, tmp_path / "other.onnx", factor=1.5)
    result = verify_files(plan, other, VerificationConfig(samples=40)).results[0]
    assert result.status == "FAIL"
    assert result.layers is not None
    assert result.layers.first is not None
    assert result.layers.first.tensor == "y"
    assert [row.tensor for row in result.layers.rows] == ["h", "r", "y"]


def test_an_engine_can_be_the_reference(engine):
    plan, model = engine
    assert verify_files(model, plan, VerificationConfig(samples=20)).reference == "tensorrt 10.13.0 (sm89)"


def test_an_engine_whose_model_is_gone_can_not_be_searched(engine, parse, tmp_path):
    plan, model = engine
    save(parse, model, factor=2)
    with pytest.raises(
        InputError, match=r"m\.onnx, which .*e\.plan was built from, is not there any more or has chang"
    ):
        open_tappable(describe_model(plan), "tensorrt")
    other = save(parse, tmp_path / "other.onnx", factor=1.5)
    layers = verify_files(plan, other, VerificationConfig(samples=20)).results[0].layers
    assert layers is not None
    assert "they can't be searched" in str(layers)


def test_an_engine_that_takes_no_small_batch_is_fed_without_the_rest(machine, parse, tmp_path, caplog):
    machine.install("10")
    model = save(parse, tmp_path / "m.onnx")
    build_engine(model, tmp_path / "e.plan", BuildConfig(shapes=ShapeOptions(None, "x:4x3", "x:4x3", "x:16x3")))
    other = save(parse, tmp_path / "other.onnx", factor=1.5)
    result = verify_files(tmp_path / "e.plan", other, VerificationConfig(samples=35))
    assert (result.samples, result.status) == (32, "FAIL")
    assert "the last 3 samples fill no batch of 4" in caplog.text
    layers = result.results[0].layers
    assert layers is not None
    assert layers.first is not None
    assert verify_files(tmp_path / "e.plan", model, VerificationConfig(samples=36)).samples == 36


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_an_engine_is_built_anew_in_the_precision_that_it_has(machine, parse, tmp_path, precision):
    machine.install("10")
    model, plan = save(parse, tmp_path / "m.onnx"), tmp_path / "e.plan"
    build_engine(model, plan, BuildConfig(shapes=SHAPES, precision=precision))
    tappable = open_tappable(describe_model(plan), "tensorrt")
    with tappable.open_model(tappable.model):
        _, config = machine.library.builds[-1]
    assert len(machine.library.builds) == 2
    assert config.get_flag(machine.library.BuilderFlag.TF32) == (precision == "tf32")


def test_the_model_of_an_engine_is_found_beside_it_too(engine, tmp_path):
    plan, model = engine
    (tmp_path / "moved").mkdir()
    for path in (plan, plan.with_name("e.plan.json"), model):
        path.rename(tmp_path / "moved" / path.name)
    found = open_tappable(describe_model(tmp_path / "moved" / "e.plan"), "tensorrt")
    assert str(tmp_path / "moved" / "m.onnx") in found.name


def test_a_model_with_one_batch_size_is_fed_whole_batches(parse, tmp_path, caplog):
    model = parse("(float[8, 3] x) => (float[8, 3] y) { y = Relu (x) }", {})
    onnx.save(model, tmp_path / "m.onnx")
    config = VerificationConfig(samples=20, reference_backend="reference")
    result = verify_files(tmp_path / "m.onnx", tmp_path / "m.onnx", config)
    assert (result.status, result.samples) == ("PASS", 16)
    assert "the last 4 samples fill no batch of 8" in caplog.text
    with pytest.raises(InputError, match="5 samples do not fill the batch of 8"):
        verify_files(tmp_path / "m.onnx", tmp_path / "m.onnx", VerificationConfig(samples=5))


def test_two_models_with_other_batch_sizes_can_not_be_fed_the_same(parse, tmp_path):
    for size in (4, 8):
        onnx.save(
            parse(f"(float[{size}, 3] x) => (float[{size}, 3] y) {{ y = Relu (x) }}", {}), tmp_path / f"{size}.onnx"
        )
    with pytest.raises(
        InputError, match=r"8\.onnx takes batches from 8 on, .*4\.onnx up to 4: they can't be fed the same"
    ):
        verify_files(tmp_path / "4.onnx", tmp_path / "8.onnx", VerificationConfig())


def no_library(machine, plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)


def no_gpu(machine, plan, monkeypatch):
    machine.install("10", cuda=FakeCuda(capability=None))


def another_version(machine, plan, monkeypatch):
    machine.install("11")


def another_gpu(machine, plan, monkeypatch):
    machine.install("10", cuda=FakeCuda(capability=(8, 0)))


def corrupt(machine, plan, monkeypatch):
    plan.write_bytes(plan.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("trouble", "samples", "code", "words"),
    [
        (no_library, 8, 3, "tensorrt is not installed; run: pip install 'vsfix[tensorrt]'"),
        (no_gpu, 8, 3, "no NVIDIA GPU and driver here"),
        (another_version, 8, 4, "was built with tensorrt 10.13.0, and 11.4.0 is here"),
        (another_gpu, 8, 4, "was built for sm89, and the GPU here is sm80"),
        (corrupt, 8, 4, "is not the plan that e.plan.json describes"),
        (None, 2, 4, "(2, 3) was given, but the optimization profile of the engine goes from (4, 3) to (16, 3)"),
    ],
)
def test_trouble_with_an_engine_is_one_line_with_its_exit_code(
    machine, parse, tmp_path, monkeypatch, call, trouble, samples, code, words
):
    machine.install("10")
    model, plan = save(parse, tmp_path / "m.onnx"), tmp_path / "e.plan"
    build_engine(model, plan, BuildConfig(shapes=ShapeOptions(None, "x:4x3", "x:4x3", "x:16x3")))
    if trouble is not None:
        trouble(machine, plan, monkeypatch)
    result = call("verify", plan, "--against", model, "--samples", samples)
    assert (result.exit_code, result.stdout) == (code, "")
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr
    monkeypatch.undo()
