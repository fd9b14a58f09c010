from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, MissingComponentError, ModelError
from vsfix.pipeline.tensorrt.cuda import Capture, Cuda, Stream, TensorBuffer, open_cuda, visible_capability

from .fake_cuda import RUBBISH, FakeCuda, Status


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


def test_cuda_python_itself_has_every_function_and_name_that_the_fake_has():
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


def test_a_tensor_goes_to_the_gpu_and_back_once_the_stream_is_through():
    cuda = Cuda(FakeCuda())
    stream, buffer = Stream(cuda), TensorBuffer(cuda, (2, 3), np.float32)
    buffer.host[...] = [[1, 2, 3], [4, 5, 6]]
    buffer.upload(stream)
    stream.synchronize()
    buffer.host[...] = 0
    buffer.download(stream)
    assert not buffer.host.any()
    stream.synchronize()
    np.testing.assert_array_equal(buffer.host, [[1, 2, 3], [4, 5, 6]])
    buffer.close()
    stream.close()
    assert cuda.runtime.is_clean()


def test_too_little_memory_is_the_fault_of_the_data_and_leaves_nothing_behind(monkeypatch):
    cuda = Cuda(FakeCuda(room=15))
    with pytest.raises(DataError, match="smaller batch size"):
        TensorBuffer(cuda, (4,), np.float32)
    monkeypatch.setattr(FakeCuda, "cudaHostAlloc", lambda *_: (Status.cudaErrorMemoryAllocation, None))
    with pytest.raises(DataError):
        TensorBuffer(cuda, (3,), np.float32)
    assert cuda.runtime.is_clean()


def test_what_is_recorded_runs_when_it_is_launched_and_not_before():
    cuda = Cuda(FakeCuda())
    stream, buffer = Stream(cuda), TensorBuffer(cuda, (1,), np.uint8)
    with Capture(cuda, stream) as capture:
        buffer.download(stream)
    buffer.host[0] = 7
    stream.synchronize()
    assert buffer.host[0] == 7
    capture.graph.launch(stream)
    stream.synchronize()
    assert buffer.host[0] == RUBBISH
    for resource in (capture.graph, buffer, stream):
        resource.close()
    assert cuda.runtime.is_clean()


def test_an_error_while_recording_leaves_nothing_behind():
    cuda = Cuda(FakeCuda())
    stream = Stream(cuda)
    with pytest.raises(ZeroDivisionError), Capture(cuda, stream):
        raise ZeroDivisionError
    stream.synchronize()
    stream.close()
    assert cuda.runtime.is_clean()
