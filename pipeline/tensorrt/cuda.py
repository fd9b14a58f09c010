"""The CUDA runtime through cuda-python; no torch is needed.

cuda-python 12.6 and newer call the module `cuda.bindings.runtime`, older ones `cuda.cudart`; every function of both
returns its status first. The GPU is the first that `CUDA_VISIBLE_DEVICES` leaves visible.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from math import prod
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from vsfix.graph_passes.errors import (
    SMALLER_BATCH,
    MissingComponentError,
    ModelError,
    VsfixError,
    device_fault,
    first_line,
)
from vsfix.graph_passes.ir.runtime import Array

INSTALL_LINE = "pip install cuda-python"
_MODULES = ("cuda.bindings.runtime", "cuda.cudart")
_LOGGER = logging.getLogger(__name__)


class Cuda:
    """The CUDA runtime on one GPU.

    Attributes:
        capability: the compute capability of the GPU, as `sm89`.

    Args:
        runtime: the module of cuda-python.

    Raises:
        MissingComponentError: there is no GPU, or no driver that this cuda-python can use.
    """

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        try:
            status, count = runtime.cudaGetDeviceCount()
        except Exception as error:  # cuda-python before 12.4 loads the driver here
            raise MissingComponentError(_no_gpu(first_line(error))) from error
        if int(status) or not count:
            raise MissingComponentError(_no_gpu(self._text(status) if int(status) else "none is visible"))
        device = self.call("cudaGetDevice")
        attributes = runtime.cudaDeviceAttr
        major, minor = (
            self.call("cudaDeviceGetAttribute", attribute, device)
            for attribute in (
                attributes.cudaDevAttrComputeCapabilityMajor,
                attributes.cudaDevAttrComputeCapabilityMinor,
            )
        )
        self.capability = f"sm{major}{minor}"

    def call(self, function: str, *arguments: Any) -> Any:
        """Calls a function of the runtime.

        Returns:
            What it returns after the status; None where there is nothing.

        Raises:
            OutOfMemoryError: the memory of the GPU does not suffice.
            MissingComponentError: the GPU is lost.
            ModelError: any other status but success.
        """
        status, *values = getattr(self.runtime, function)(*arguments)
        if int(status):
            said = self._text(status)
            fault = device_fault(RuntimeError(f"CUDA error: {said}"), f"CUDA: {function}", SMALLER_BATCH)
            raise fault or ModelError(f"CUDA: {function} fails: {said}")
        return values[0] if values else None

    def release(self, function: str, resource: Any) -> None:
        """Gives something back; what fails here has failed before, and is only logged."""
        try:
            self.call(function, resource)
        except VsfixError as error:
            _LOGGER.debug("%s", error)

    def _text(self, status: Any) -> str:
        """A status in words."""
        _, text = self.runtime.cudaGetErrorString(status)
        return text.decode() if isinstance(text, bytes) else str(text)


def open_cuda() -> Cuda:
    """The CUDA runtime.

    Raises:
        MissingComponentError: cuda-python is not installed, or there is no GPU and driver for it.
    """
    for module in _MODULES:
        try:
            runtime = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        except Exception as error:  # the loading of libraries raises what it likes
            raise MissingComponentError(
                f"cuda-python can't be loaded: {first_line(error)}; run: {INSTALL_LINE}"
            ) from error
        return Cuda(runtime)
    raise MissingComponentError(f"cuda-python is not installed; run: {INSTALL_LINE}")


def visible_capability() -> str | None:
    """The compute capability of the GPU, as `sm89`; None where none can be asked."""
    try:
        return open_cuda().capability
    except VsfixError:
        return None


def _no_gpu(said: str) -> str:
    """The message where no GPU can be used."""
    return (
        f"CUDA: no NVIDIA GPU and driver here that cuda-python can use ({said}); check with nvidia-smi, and install "
        "the cuda-python of the CUDA version that it shows, as pip install 'cuda-python<13'"
    )


class Stream:
    """A stream that does not wait for the default one.

    Attributes:
        handle: what TensorRT and the runtime take.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.handle = int(cuda.call("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking))

    def synchronize(self) -> None:
        """Waits until everything in the stream is done."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def settle(self) -> None:
        """Waits as well, after an error too, so that what the work in the stream uses can be given back."""
        self._cuda.release("cudaStreamSynchronize", self.handle)

    def close(self) -> None:
        """Gives the stream back."""
        self._cuda.release("cudaStreamDestroy", self.handle)


class Capture:
    """A context in which what goes into a stream is recorded instead of run.

    Attributes:
        graph: what was recorded, once the context is left without an error.
    """

    graph: Graph

    def __init__(self, cuda: Cuda, stream: Stream) -> None:
        self._cuda, self._stream = cuda, stream

    def __enter__(self) -> Self:
        # What other threads allocate meanwhile does not end a capture of this mode.
        mode = self._cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call("cudaStreamBeginCapture", self._stream.handle, mode)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            recorded = self._cuda.call("cudaStreamEndCapture", self._stream.handle)
        except ModelError:  # an error inside may have ended the capture already
            if error is None:
                raise
            return
        try:
            if error is None:
                self.graph = Graph(self._cuda, self._cuda.call("cudaGraphInstantiateWithFlags", recorded, 0))
        finally:
            self._cuda.release("cudaGraphDestroy", recorded)


class Graph:
    """A recorded sequence of work, with the addresses that it was recorded with."""

    def __init__(self, cuda: Cuda, executable: Any) -> None:
        self._cuda, self._executable = cuda, executable

    def launch(self, stream: Stream) -> None:
        """Puts the work into a stream."""
        self._cuda.call("cudaGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Gives the graph back."""
        self._cuda.release("cudaGraphExecDestroy", self._executable)


class Event:
    """A mark that the GPU passes when everything before it in the stream is done."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._handle = cuda.call("cudaEventCreate")

    def record(self, stream: Stream) -> None:
        """Puts the mark into a stream, after what is in it."""
        self._cuda.call("cudaEventRecord", self._handle, stream.handle)

    def milliseconds_since(self, earlier: Event) -> float:
        """The time from another mark to this one; both must have been passed. Resolution about half a microsecond."""
        return float(self._cuda.call("cudaEventElapsedTime", earlier._handle, self._handle))

    def close(self) -> None:
        """Gives the mark back."""
        self._cuda.release("cudaEventDestroy", self._handle)


class TensorBuffer:
    """Room for one tensor, on the GPU and, in pages that are not swapped, on the host.

    Attributes:
        host: the tensor on the host; only valid until `close`.
        device: its address on the GPU.
    """

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._cuda = cuda
        self._bytes = prod(shape) * np.dtype(dtype).itemsize
        size = max(self._bytes, 1)  # an address is wanted of an empty tensor too
        self.device = int(cuda.call("cudaMalloc", size))
        try:
            self._pinned = int(cuda.call("cudaHostAlloc", size, cuda.runtime.cudaHostAllocDefault))
        except VsfixError:
            cuda.release("cudaFree", self.device)
            raise
        memory = memoryview((ctypes.c_byte * size).from_address(self._pinned))
        self.host: Array = np.frombuffer(memory, dtype, count=prod(shape)).reshape(shape)

    def upload(self, stream: Stream) -> None:
        """Copies the tensor to the GPU, some time before the stream is through."""
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._cuda.call("cudaMemcpyAsync", self.device, self._pinned, self._bytes, kind, stream.handle)

    def download(self, stream: Stream) -> None:
        """Copies the tensor to the host, some time before the stream is through."""
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._cuda.call("cudaMemcpyAsync", self._pinned, self.device, self._bytes, kind, stream.handle)

    def close(self) -> None:
        """Gives the memory back."""
        self._cuda.release("cudaFree", self.device)
        self._cuda.release("cudaFreeHost", self._pinned)
