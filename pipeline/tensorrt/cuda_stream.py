"""A stream of the GPU, and what is recorded of it: the order in which copies and kernels run."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from typing_extensions import Self

from vsfix.graph_passes.errors import ModelError

from .cuda_runtime import Cuda


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
