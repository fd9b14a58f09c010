from __future__ import annotations

import pytest

from vsfix.graph_passes.errors import (
    DataError,
    InputError,
    MissingComponentError,
    OutOfMemoryError,
    StoppedError,
    device_fault,
)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\u2028", "\x0b"])
def test_a_name_with_line_breaks_leaves_the_message_one_line(end):
    error = DataError(f"a.npz: array 'x{end}y  z' is damaged")
    assert str(error) == "a.npz: array 'x y  z' is damaged"
    assert str(InputError(f"b: {error}")) == "b: a.npz: array 'x y  z' is damaged"
    assert str(StoppedError(f"stopped{end}here", 15)) == "stopped here"


ORT = "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. "
SAID = {
    "cudaErrorMemoryAllocation": OutOfMemoryError,
    "cudaErrorNoDevice": MissingComponentError,
    "cudaErrorDevicesUnavailable": MissingComponentError,
    "cudaErrorInvalidDevice": MissingComponentError,
    "cudaErrorDeviceUninitialized": MissingComponentError,
    "cudaErrorECCUncorrectable": MissingComponentError,
    "cudaErrorNvlinkUncorrectable": MissingComponentError,
    "cudaErrorUnknown": MissingComponentError,
    "cudaErrorInvalidValue": None,
    "cudaErrorIllegalAddress": None,
    "cudaErrorLaunchFailure": None,
}


@pytest.mark.parametrize(("status", "kind"), SAID.items())
def test_the_words_are_those_of_cuda(status, kind):
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    _, text = runtime.cudaGetErrorString(getattr(runtime.cudaError_t, status))
    fault = device_fault(RuntimeError(f"CUDA error: {text.decode()}\nmore of it"), "torch (cuda)", "do less")
    assert type(fault) is (kind or type(None))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (f"{ORT}bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 8", OutOfMemoryError),
        (f"{ORT}CUDA failure 2: out of memory ; GPU=0", OutOfMemoryError),
        (f"{ORT}CUDA failure 999: unknown error ; GPU=0", MissingComponentError),
        (f"{ORT}CUDA failure 46: all CUDA-capable devices are busy or unavailable ; GPU=0", MissingComponentError),
        (f"{ORT}Attempting to broadcast an axis by a dimension other than 1.", None),
    ],
)
def test_the_words_are_those_of_onnx_runtime(said, kind):
    assert type(device_fault(RuntimeError(said), "onnxruntime", "do less")) is (kind or type(None))


def test_an_allocation_that_python_refuses_is_one_too_many():
    fault = device_fault(MemoryError(), "torch (cpu), batch of 8", "take less")
    assert str(fault) == "torch (cpu), batch of 8: the memory does not suffice (MemoryError); take less"
