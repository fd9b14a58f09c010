from __future__ import annotations

import importlib
import sys

import pytest

from vsfix.graph_passes.errors import MissingComponentError, ModelError
from vsfix.pipeline.tensorrt.cuda_runtime import Cuda, open_cuda, visible_capability

from .fake_cuda import FakeCuda, Status


@pytest.mark.parametrize("module", ["cuda.bindings.runtime", "cuda.cudart"])
def test_the_runtime_is_found_under_its_new_and_its_old_name(monkeypatch, module):
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, FakeCuda((9, 0)) if name == module else None)
    assert open_cuda().capability == visible_capability() == "sm90"


def test_where_there_is_no_gpu_no_capability_can_be_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeCuda(None))
    assert visible_capability() is None
    with pytest.raises(MissingComponentError, match=r"\(cudaErrorNoDevice\); check with nvidia-smi"):
        open_cuda()


def test_a_cuda_python_that_does_not_load_says_why(monkeypatch):
    def broken(name):
        raise OSError("libnvrtc.so.13: cannot open\nshared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(
        MissingComponentError, match=r"can't be loaded: libnvrtc\.so\.13: cannot open; run: pip install"
    ):
        open_cuda()


def test_an_older_cuda_python_that_finds_no_driver_raises_and_that_is_told_too():
    class Driverless(FakeCuda):
        def cudaGetDeviceCount(self):
            raise RuntimeError("Failed to dlopen libcuda.so.1")

    with pytest.raises(MissingComponentError, match=r"Failed to dlopen libcuda\.so\.1"):
        Cuda(Driverless())


def test_every_other_status_is_an_error_with_its_function_and_its_words():
    cuda = Cuda(FakeCuda())
    with pytest.raises(ModelError, match=r"^CUDA: cudaMemcpyAsync fails: cudaErrorInvalidValue$"):
        cuda.call("cudaMemcpyAsync", 1, 2, 3, 1, 4)


def test_a_gpu_that_vanishes_in_mid_run_is_a_component_that_is_missing(monkeypatch):
    cuda = Cuda(FakeCuda())
    monkeypatch.setattr(FakeCuda, "cudaMemcpyAsync", lambda *_: (Status.cudaErrorDevicesUnavailable,))
    with pytest.raises(
        MissingComponentError, match=r"^CUDA: cudaMemcpyAsync: the GPU does not answer any more \(.*Xid"
    ):
        cuda.call("cudaMemcpyAsync", 1, 2, 3, 1, 4)


def test_cuda_python_itself_has_every_function_and_name_that_the_stand_in_has():
    runtime = pytest.importorskip(
        "cuda.bindings.runtime", reason="cuda-python is not installed; run: pip install cuda-python"
    )
    for name in (name for name in dir(FakeCuda) if name.startswith("cuda")):
        assert hasattr(runtime, name), name
        if isinstance(getattr(FakeCuda, name), type) and name != "cudaError_t":
            for member in getattr(FakeCuda, name):
                assert int(getattr(getattr(runtime, name), member.name)) == member
    for status in Status:
        assert int(getattr(runtime.cudaError_t, status.name)) == status


def test_cuda_python_itself_says_in_one_line_that_there_is_no_gpu():
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed; run: pip install cuda-python")
    if visible_capability() is not None:
        pytest.skip("there is a GPU here")
    with pytest.raises(MissingComponentError, match="no NVIDIA GPU and driver here") as caught:
        open_cuda()
    assert "\n" not in str(caught.value)
