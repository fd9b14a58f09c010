from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import onnx
import pytest

from vsfix.pipeline import doctor
from vsfix.pipeline.backends import onnxruntime_runner
from vsfix.pipeline.doctor import BackendCheck, can_infer, check_backends, trial_model

from .fake_tensorrt import fake_tensorrt


@pytest.fixture(scope="module")
def checks():
    return {check.name: check for check in check_backends()}


def test_the_trial_model_is_valid():
    onnx.checker.check_model(trial_model(), full_check=True)


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "reference"])
def test_what_the_tests_need_works(checks, name):
    assert checks[name].status == "PASS"
    assert checks[name].version


def test_what_does_not_work_has_a_reason_and_a_remedy(checks):
    for check in checks.values():
        assert (check.status == "PASS") == (not check.reason) == (not check.remedy)


def test_a_library_that_is_absent_is_skipped_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    check = {check.name: check for check in check_backends()}["tensorrt"]
    assert (check.status, check.remedy) == ("SKIP", "pip install 'vsfix[tensorrt]'")


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
    check = {check.name: check for check in check_backends()}["onnxruntime"]
    assert (check.status, check.reason) == ("FAIL", "runs, but computes wrong numbers")


@pytest.mark.parametrize("version", ["8.6", "10", "11"])
def test_tensorrt_passes_where_it_builds(monkeypatch, version):
    library = fake_tensorrt(version)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setattr("tests.pipeline.fake_tensorrt.KINDS", {"MatMul": "MATRIX_MULTIPLY", "Relu": "ACTIVATION"})
    check = {check.name: check for check in check_backends()}["tensorrt"]
    assert check == BackendCheck("tensorrt", "PASS", library.__version__)


def test_tensorrt_without_a_gpu_fails_and_says_where_to_look(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("10", gpu=False))
    check = {check.name: check for check in check_backends()}["tensorrt"]
    assert (check.status, check.version, check.remedy) == (
        "FAIL",
        "10.13.0",
        "check the driver and the GPU with nvidia-smi",
    )
    assert "CUDA initialization failure" in check.reason


def test_tensorrt_rtx_builds_without_a_gpu(checks):
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed; run: pip install 'vsfix[rtx]'")
    assert checks["tensorrt-rtx"].status == "PASS"


def test_a_broken_library_fails_and_the_others_are_tried_all_the_same(monkeypatch):
    def broken(*_, **__):
        raise OSError("libnvinfer.so.10: cannot open\nshared object file")

    library = fake_tensorrt("10")
    library.Builder = broken
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    by_name = {check.name: check for check in check_backends()}
    assert by_name["tensorrt"].status == "FAIL"
    assert "libnvinfer.so.10: cannot open" in by_name["tensorrt"].reason
    assert by_name["reference"].status == "PASS"


def test_the_reference_evaluator_alone_is_no_inference_backend():
    assert not can_infer((BackendCheck("reference", "PASS", "1"), BackendCheck("torch", "SKIP", "")))
    assert can_infer((BackendCheck("torch", "PASS", "2"),))


def test_what_builds_engines_does_not_run_models():
    assert not can_infer((BackendCheck("tensorrt-rtx", "PASS", "1"), BackendCheck("tensorrt", "PASS", "10")))
