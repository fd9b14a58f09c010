from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.util import find_spec

import numpy as np
import onnx
import pytest

from tests.pipeline.tensorrt.fake_cuda import FakeCuda
from tests.pipeline.tensorrt.fake_tensorrt import fake_tensorrt
from vsfix.pipeline.backends import doctor, onnxruntime_runner
from vsfix.pipeline.backends.doctor import BackendCheck, can_infer, check_backends, trial_model
from vsfix.pipeline.backends.opening import BACKENDS
from vsfix.pipeline.tensorrt.cuda import visible_capability


@pytest.fixture(scope="module")
def checks():
    return {check.name: check for check in check_backends()}


def test_the_trial_model_is_valid():
    onnx.checker.check_model(trial_model(), full_check=True)


@pytest.mark.long
def test_every_backend_is_tried(checks):
    assert set(BACKENDS) <= set(checks)


@pytest.mark.parametrize("name", ["torch", "torch-compile", "onnxruntime", "reference"])
def test_what_the_tests_need_works(checks, name):
    assert checks[name].status == "PASS"
    assert checks[name].version


def test_what_does_not_work_has_a_reason_and_a_remedy(checks):
    for check in checks.values():
        assert (check.status == "PASS") == (not check.reason) == (not check.remedy)


def test_a_library_that_is_absent_is_skipped_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (check,) = check_backends(["tensorrt"])
    assert (check.status, check.remedy) == ("SKIP", "pip install 'vsfix[tensorrt]'")


@pytest.mark.long
def test_without_onnx_runtime_the_doctor_names_its_extra(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda *names: "")
    by_name = {check.name: check for check in check_backends()}
    assert by_name["onnxruntime"] == BackendCheck(
        "onnxruntime", "SKIP", "", "onnxruntime is not installed", "pip install 'vsfix[cpu]'"
    )
    assert by_name["torch"].remedy == "pip install 'vsfix[train]'"
    assert not can_infer(tuple(by_name.values()))


def test_a_backend_that_computes_wrong_numbers_fails(monkeypatch):
    right = onnxruntime_runner.OnnxRuntimeRunner.run
    monkeypatch.setattr(
        onnxruntime_runner.OnnxRuntimeRunner,
        "run",
        lambda self, inputs: {name: array * np.float32(2) for name, array in right(self, inputs).items()},
    )
    (check,) = check_backends(["onnxruntime"])
    assert (check.status, check.reason) == ("FAIL", "runs, but computes wrong numbers")


@pytest.fixture
def gpu(machine, monkeypatch):
    """A machine on which TensorRT can build the small model."""
    monkeypatch.setattr(
        "tests.pipeline.tensorrt.fake_tensorrt.KINDS", {"MatMul": "MATRIX_MULTIPLY", "Relu": "ACTIVATION"}
    )
    return machine


@pytest.mark.parametrize("version", ["8.6", "10", "11"])
def test_tensorrt_passes_where_it_builds_and_runs(gpu, version):
    gpu.install(version)
    (check,) = check_backends(["tensorrt"])
    assert check == BackendCheck("tensorrt", "PASS", gpu.library.__version__)
    assert gpu.cuda.calls["execute_async_v3"] == 1
    assert gpu.cuda.is_clean()


def test_tensorrt_that_computes_wrong_numbers_fails(gpu, monkeypatch):
    gpu.install("11")
    monkeypatch.setattr(doctor, "_WEIGHT", doctor._WEIGHT * 2)
    (check,) = check_backends(["tensorrt"])
    assert (check.status, check.reason) == ("FAIL", "runs, but computes wrong numbers")


def test_tensorrt_without_a_gpu_fails_and_says_where_to_look(gpu):
    gpu.install("10", gpu=False)
    (check,) = check_backends(["tensorrt"])
    assert (check.status, check.version, check.remedy) == (
        "FAIL",
        "10.13.0",
        "check the driver and the GPU with nvidia-smi",
    )
    assert "CUDA initialization failure" in check.reason


def test_without_cuda_python_tensorrt_builds_and_does_not_run(gpu, monkeypatch):
    gpu.install("10")
    for module in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, module, None)
    (check,) = check_backends(["tensorrt"])
    assert (check.status, check.remedy) == ("WARN", "pip install cuda-python")
    assert check.reason == "builds engines, but can't run them: cuda-python is not installed"


def test_an_engine_that_is_refused_fails_with_the_words_of_tensorrt(gpu, monkeypatch):
    gpu.install("10")
    monkeypatch.setattr("tests.pipeline.tensorrt.fake_tensorrt.fake_plan", lambda *_, **__: b"?trt")
    (check,) = check_backends(["tensorrt"])
    assert (check.status, check.remedy) == ("FAIL", "check the driver and the GPU with nvidia-smi")
    assert "kEXPECTED_MAGIC_TAG" in check.reason


def test_tensorrt_rtx_builds_without_a_gpu_and_says_that_it_can_not_run(checks):
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed; run: pip install 'vsfix[rtx]'")
    if visible_capability() is not None:
        pytest.skip("there is a GPU here")
    assert checks["tensorrt-rtx"].status == "WARN"
    assert checks["tensorrt-rtx"].reason.startswith("builds engines, but can't run them: ")
    assert "\n" not in checks["tensorrt-rtx"].reason


def test_tensorrt_rtx_says_where_it_builds_for_other_gpus_only(monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed; run: pip install 'vsfix[rtx]'")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeCuda((9, 0)))
    (check,) = check_backends(["tensorrt-rtx"])
    assert (check.status, check.reason) == ("WARN", "builds engines, but none for the sm90 here")


def test_the_command_prints_every_backend_with_what_helps(call, monkeypatch):
    found = (
        BackendCheck("onnxruntime", "PASS", "1"),
        BackendCheck("tensorrt-rtx", "WARN", "2", "builds engines, but can't run them", "nvidia-smi"),
    )
    monkeypatch.setattr(doctor, "check_backends", lambda: found)
    result = call("doctor", "--json", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["backends"] == [asdict(check) for check in found]
    assert "WARN" in call("doctor").stdout
    monkeypatch.setattr(doctor, "check_backends", lambda: found[1:])
    result = call("doctor")
    assert (result.exit_code, len(result.stderr.splitlines())) == (3, 1)
    assert "WARN" in result.stdout


def test_a_broken_library_fails_and_the_others_are_tried_all_the_same(monkeypatch):
    def broken(*_, **__):
        raise OSError("libnvinfer.so.10: cannot open\nshared object file")

    library = fake_tensorrt("10")
    library.Builder = broken
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    by_name = {check.name: check for check in check_backends(["tensorrt", "reference"])}
    assert by_name["tensorrt"].status == "FAIL"
    assert "libnvinfer.so.10: cannot open" in by_name["tensorrt"].reason
    assert by_name["reference"].status == "PASS"


def test_the_reference_evaluator_alone_is_no_inference_backend():
    assert not can_infer((BackendCheck("reference", "PASS", "1"), BackendCheck("torch", "SKIP", "")))
    assert can_infer((BackendCheck("torch", "PASS", "2"),))


def test_what_only_builds_engines_does_not_run_models():
    assert not can_infer((BackendCheck("tensorrt-rtx", "WARN", "1"), BackendCheck("tensorrt", "FAIL", "10")))
    assert can_infer((BackendCheck("tensorrt", "PASS", "10"),))
