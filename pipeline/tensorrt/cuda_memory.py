"""Memory for a tensor, on the GPU and on the host."""

from __future__ import annotations

import ctypes
from math import prod

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import VsfixError
from vsfix.graph_passes.ir.runtime import Array

from .cuda_runtime import Cuda
from .cuda_stream import Stream


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
