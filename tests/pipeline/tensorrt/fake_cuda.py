"""A fake of the CUDA runtime of cuda-python: nothing in a stream happens before the stream is waited for.

Signatures and names were read from cuda-bindings 12.9, 13.0 and 13.4 and from cuda-python 12.2. The memory of the GPU
can't be reached but through a copy, fresh memory is full of rubbish, and what was given back is gone: a copy, an
address or a wait that is forgotten shows in the numbers or ends the test.
"""

from __future__ import annotations

import ctypes
import enum
from collections import Counter
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

RUBBISH = 0xCD
TEXTS = {2: b"out of memory", 46: b"CUDA-capable device(s) is/are busy or unavailable"}  # as CUDA has them


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorDevicesUnavailable = 46
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureUnsupported = 900


class FakeCuda:
    """The module `cuda.bindings.runtime`.

    Args:
        capability: of the GPU; None for no GPU.
        room: bytes of its memory.

    Attributes:
        calls: how often some of the functions were called.
    """

    cudaError_t = Status
    cudaMemcpyKind = enum.IntEnum("cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})
    cudaDeviceAttr = enum.IntEnum(
        "cudaDeviceAttr", {"cudaDevAttrComputeCapabilityMajor": 75, "cudaDevAttrComputeCapabilityMinor": 76}
    )
    cudaStreamCaptureMode = enum.IntEnum("cudaStreamCaptureMode", {"cudaStreamCaptureModeThreadLocal": 1})
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(self, capability: tuple[int, int] | None = (8, 9), room: int = 1 << 20) -> None:
        self.capability, self.room = capability, room
        self.device: dict[int, bytearray] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, Any] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.milliseconds = 0.0  # that copies have taken
        self.events: dict[int, float | None] = {}  # when it was passed
        self.calls: Counter[str] = Counter()
        self._handles = count(0x1000, 0x1000)

    def is_clean(self) -> bool:
        """Whether everything was given back."""
        return not (self.device or self.pinned or self.streams or self.graphs or self.events)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Work that waits in a stream, or is recorded."""
        found = self.streams[stream]
        (found.queue if found.recorded is None else found.recorded).append(work)

    def is_recording(self, stream: int) -> bool:
        return self.streams[stream].recorded is not None

    def cudaGetErrorString(self, status: Status) -> tuple[Status, bytes]:
        return Status.cudaSuccess, TEXTS.get(int(status), status.name.encode())

    def cudaGetDeviceCount(self) -> tuple[Status, int | None]:
        return (Status.cudaErrorNoDevice, None) if self.capability is None else (Status.cudaSuccess, 1)

    def cudaGetDevice(self) -> tuple[Status, int]:
        return Status.cudaSuccess, 0

    def cudaDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[Status, int]:
        assert self.capability is not None
        return Status.cudaSuccess, self.capability[attribute - 75]

    def cudaMalloc(self, size: int) -> tuple[Status, int | None]:
        if self._records():
            return Status.cudaErrorStreamCaptureUnsupported, None
        if size + sum(map(len, self.device.values())) > self.room:
            return Status.cudaErrorMemoryAllocation, None
        if not size:
            return Status.cudaSuccess, 0
        self.calls["cudaMalloc"] += 1
        address = next(self._handles)
        self.device[address] = bytearray([RUBBISH] * size)
        return Status.cudaSuccess, address

    def cudaFree(self, address: int) -> tuple[Status]:
        del self.device[address]
        return (Status.cudaSuccess,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Status, int]:
        memory = ctypes.create_string_buffer(bytes([RUBBISH] * size), size)
        self.pinned[ctypes.addressof(memory)] = memory
        return Status.cudaSuccess, ctypes.addressof(memory)

    def cudaFreeHost(self, address: int) -> tuple[Status]:
        del self.pinned[address]
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: int) -> tuple[Status]:
        host, device = (source, to) if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else (to, source)
        if host not in self.pinned or device not in self.device:
            return (Status.cudaErrorInvalidValue,)

        def copy() -> None:
            assert size <= min(len(self.device[device]), len(self.pinned[host]))
            self.milliseconds += 0.0625 if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else 0.125
            if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice:
                self.device[device][:size] = ctypes.string_at(host, size)
            else:
                ctypes.memmove(host, bytes(self.device[device][:size]), size)

        self.enqueue(stream, copy)
        return (Status.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, int]:
        assert flags == self.cudaStreamNonBlocking
        handle = next(self._handles)
        self.streams[handle] = SimpleNamespace(queue=[], recorded=None)
        return Status.cudaSuccess, handle

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        if self.is_recording(stream):
            return (Status.cudaErrorStreamCaptureUnsupported,)
        queue = self.streams[stream].queue
        while queue:
            queue.pop(0)()
        return (Status.cudaSuccess,)

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        assert not self.streams.pop(stream).queue
        return (Status.cudaSuccess,)

    def cudaEventCreate(self) -> tuple[Status, int]:
        handle = next(self._handles)
        self.events[handle] = None
        return Status.cudaSuccess, handle

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Status]:
        def mark() -> None:
            self.events[event] = self.milliseconds + 0.25 * self.calls["execute_async_v3 done"]

        self.enqueue(stream, mark)
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Status, float | None]:
        begun, done = self.events[start], self.events[end]
        if begun is None or done is None:
            return Status.cudaErrorInvalidValue, None
        return Status.cudaSuccess, done - begun

    def cudaEventDestroy(self, event: int) -> tuple[Status]:
        del self.events[event]
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Status]:
        self.streams[stream].recorded = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Status, int]:
        recorded, self.streams[stream].recorded = self.streams[stream].recorded, None
        return Status.cudaSuccess, self._graph(recorded)

    def cudaGraphInstantiateWithFlags(self, graph: int, flags: int) -> tuple[Status, int]:
        return Status.cudaSuccess, self._graph(list(self.graphs[graph]))

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Status]:
        self.calls["cudaGraphLaunch"] += 1
        for work in self.graphs[graph]:
            self.enqueue(stream, work)
        return (Status.cudaSuccess,)

    def cudaGraphDestroy(self, graph: int) -> tuple[Status]:
        del self.graphs[graph]
        return (Status.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def _graph(self, work: list[Callable[[], None]]) -> int:
        handle = next(self._handles)
        self.graphs[handle] = work
        return handle

    def _records(self) -> bool:
        return any(stream.recorded is not None for stream in self.streams.values())
