"""The refusals between an engine file and its first run, each in one line that says what to do."""

from __future__ import annotations

import json
import os
import re
import sys

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.errors import BuildError, InputError, MissingComponentError, ModelError, VsfixError
from vsfix.pipeline.backends.opening import open_runner
from vsfix.pipeline.building.build_config import BuildConfig
from vsfix.pipeline.building.building import build_engine
from vsfix.pipeline.tensorrt.engine_file import sidecar_path
from vsfix.pipeline.tensorrt.library import open_library
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions

from .fake_cuda import FakeCuda
from .fake_machine import linear_model

X = {"x": np.ones((2, 3), np.float32)}


def refusal(path, backend="tensorrt", **settings) -> VsfixError:
    with pytest.raises(VsfixError) as caught:
        open_runner(backend, path, **settings)
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_engine_with_its_sidecar_opens(machine):
    machine.install()
    with open_runner("tensorrt", machine.write(machine.plan())) as runner:
        assert runner.run(X)["y"].shape == (2, 5)


def test_without_tensorrt_the_line_that_installs_it_is_given(machine, monkeypatch):
    machine.install()
    path = machine.write(machine.plan())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    error = refusal(path)
    assert isinstance(error, MissingComponentError)
    assert str(error) == "tensorrt is not installed; run: pip install 'vsfix[tensorrt]'"


def test_without_cuda_python_the_line_that_installs_it_is_given(machine, monkeypatch):
    machine.install()
    for module in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, module, None)
    error = refusal(machine.write(machine.plan()))
    assert isinstance(error, MissingComponentError)
    assert str(error) == "cuda-python is not installed; run: pip install cuda-python"


def test_without_a_gpu_it_says_where_to_look(machine):
    machine.install()
    path = machine.write(machine.plan())
    machine.install(cuda=FakeCuda(capability=None))
    error = refusal(path)
    assert isinstance(error, MissingComponentError)
    assert "no NVIDIA GPU and driver here" in str(error)
    assert "nvidia-smi" in str(error)


def test_a_gpu_that_tensorrt_alone_does_not_find_is_missing_too(machine):
    machine.install(gpu=False)
    error = refusal(machine.write(machine.plan()))
    assert isinstance(error, MissingComponentError)
    assert str(error).endswith("can't be loaded on this machine: no GPU and driver for it here")


def test_an_engine_of_another_version_is_named_with_both(machine):
    machine.install()
    error = refusal(machine.write(machine.plan(), version="10.3.0"))
    assert isinstance(error, BuildError)
    assert "was built with tensorrt 10.3.0, and 10.13.0 is here" in str(error)
    assert str(error).endswith("build it anew with `vsfix build`")


@pytest.mark.parametrize("sidecar", [{"targets": ["sm80", "sm86"], "gpu": None}, {"gpu": "sm86"}])
def test_an_engine_for_another_gpu_is_named_with_both(machine, sidecar):
    machine.install()
    error = refusal(machine.write(machine.plan(), **sidecar))
    assert isinstance(error, BuildError)
    assert "sm86, and the GPU here is sm89; build it anew" in str(error)


@pytest.mark.parametrize("sidecar", [{"targets": ["sm80", "sm89"]}, {"targets": ["current"], "gpu": None}])
def test_an_engine_that_is_for_this_gpu_or_does_not_say_opens(machine, sidecar):
    machine.install()
    open_runner("tensorrt", machine.write(machine.plan(), **sidecar)).__exit__(None, None, None)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"version": "10.3.0"}, "not compatible with this version of TensorRT, expecting library version 10.13.0 got"),
        ({"capability": "sm75"}, "generated on an incompatible device"),
    ],
)
def test_where_the_sidecar_does_not_know_tensorrt_is_quoted(machine, odd, words):
    machine.install()
    path = machine.write(machine.plan(**odd))
    sidecar_path(path).unlink()
    error = refusal(path, trust=True)
    assert isinstance(error, BuildError)
    assert f"{path}: tensorrt 10.13.0 refuses the engine: " in str(error)
    assert words in str(error)
    assert str(error).endswith("; build it anew with `vsfix build`")


def test_each_refusal_is_quoted_in_its_own_words(machine):
    machine.install()
    library = open_library("tensorrt")
    for plan, words in [(b"?trt", "kEXPECTED_MAGIC_TAG"), (machine.plan(capability="sm75"), "incompatible device")]:
        with pytest.raises(BuildError, match=words):
            library.load(plan)


@pytest.mark.parametrize(
    "damage", [lambda plan: plan[:-1], lambda plan: plan + b" ", lambda plan: plan[:9] + b"!" + plan[10:]]
)
def test_a_corrupt_plan_is_told_by_its_hash_and_never_loaded(machine, damage):
    machine.install()
    path = machine.write(machine.plan())
    path.write_bytes(damage(path.read_bytes()))
    error = refusal(path, trust=True)
    assert isinstance(error, BuildError)
    assert "is not the plan that e.plan.json describes (its SHA-256 is another one)" in str(error)
    assert machine.library.deaths == []


def test_without_its_sidecar_a_plan_is_loaded_only_where_the_caller_trusts_it(machine):
    machine.install()
    path = machine.write(machine.plan())
    sidecar_path(path).unlink()
    error = refusal(path)
    assert isinstance(error, ModelError)
    assert "e.plan.json is not beside it, and a plan is code that runs here" in str(error)
    assert "trust=True" in str(error)
    with open_runner("tensorrt", path, trust=True) as runner:
        assert runner.run(X)["y"].shape == (2, 5)


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", "{}", '{"plan": 3}', '{"plan": {"sha256": "00"}, "runtime": "tensorrt"}']
)
def test_a_sidecar_that_vsfix_did_not_write_is_refused(machine, text):
    machine.install()
    path = machine.write(machine.plan())
    sidecar_path(path).write_text(text)
    error = refusal(path)
    assert isinstance(error, ModelError)
    assert re.search(r"e\.plan\.json: (can't be read as a sidecar|says too little of the engine) \(", str(error))


@pytest.mark.parametrize(("content", "words"), [(b"", "is empty"), (b"text of any kind", "is no engine of TensorRT")])
def test_a_file_that_is_no_engine_is_bad_input(tmp_path, content, words):
    (tmp_path / "e.plan").write_bytes(content)
    error = refusal(tmp_path / "e.plan")
    assert isinstance(error, ModelError)
    assert words in str(error)


def test_an_engine_of_the_other_runtime_names_the_backend_that_runs_it(machine):
    machine.install("rtx")
    path = machine.write(machine.plan(), runtime="tensorrt")
    error = refusal(path, "tensorrt-rtx")
    assert isinstance(error, InputError)
    assert str(error).endswith("is an engine of tensorrt; run it with --backend tensorrt")


def test_the_report_of_a_build_is_a_sidecar_that_opens(machine, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        "tests.pipeline.tensorrt.fake_tensorrt.KINDS", {"MatMul": "MATRIX_MULTIPLY", "Relu": "ACTIVATION"}
    )
    backend = machine.install("11")
    onnx.save(onnx.parser.parse_model(LINEAR), tmp_path / "m.onnx")
    report = build_engine(tmp_path / "m.onnx", tmp_path / "e.plan", BuildConfig(shapes=ShapeOptions("x:2x3")))
    assert report.gpu == json.loads((tmp_path / "e.plan.json").read_text())["gpu"] == "sm89"
    with open_runner(backend, tmp_path / "e.plan") as runner:
        np.testing.assert_array_equal(runner.run(X)["y"], [[2.75, 4], [2.75, 4]])


LINEAR = """<ir_version: 8, opset_import: ["" : 13]>
main (float[N, 3] x) => (float[N, 2] y) <float[3, 2] w = {1, -1, 2, 1, -0.25, 4}> { p = MatMul (x, w)\n y = Relu (p) }"""


def test_tensorrt_rtx_itself_says_in_one_line_that_there_is_no_gpu(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed; run: pip install 'vsfix[rtx]'")
    onnx.save(onnx.parser.parse_model(LINEAR), tmp_path / "m.onnx")
    config = BuildConfig("tensorrt-rtx", ShapeOptions("x:2x3"), targets=("sm89",))
    report = build_engine(tmp_path / "m.onnx", tmp_path / "e.plan", config)
    if report.gpu is not None:
        pytest.skip("there is a GPU here")
    error = refusal(tmp_path / "e.plan", "tensorrt-rtx")
    assert isinstance(error, MissingComponentError)
    with pytest.raises(MissingComponentError, match="no GPU and driver for it here"):
        open_library("tensorrt-rtx").load((tmp_path / "e.plan").read_bytes())


def test_verify_loads_a_foreign_engine_where_it_is_trusted(machine, call, tmp_path):
    machine.install()
    model = linear_model()
    onnx.save(model, tmp_path / "net.onnx")
    path = machine.write(machine.plan(model))
    sidecar_path(path).unlink()
    command = ("verify", path, "--against", tmp_path / "net.onnx", "--samples", "4", "--batch-size", "2")
    refused = call(*command)
    assert refused.exit_code == 2
    assert "an engine alone does not say what it is" in refused.stderr
    trusted = call(*command, "--trust")
    assert trusted.exit_code == 0, trusted.output
    assert "PASS" in trusted.output
    other = linear_model()
    weight = other.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))
    path.write_bytes(machine.plan(other))
    failed = call(*command, "--trust")
    assert failed.exit_code == 1
    assert "has no sidecar, and so the graph that it was built from is not known" in failed.output


def test_trust_does_not_outweigh_a_sidecar_of_another_plan(machine, call, tmp_path):
    machine.install()
    onnx.save(linear_model(), tmp_path / "net.onnx")
    path = machine.write(machine.plan())
    path.write_bytes(path.read_bytes() + b"more")
    result = call("verify", path, "--against", tmp_path / "net.onnx", "--trust")
    assert result.exit_code in (2, 4)
    assert result.stderr.startswith("vsfix: error: ")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "e.plan")
    assert "is a pipe" in str(refusal(tmp_path / "e.plan"))
