"""Times on the GPU: marks in a stream, and the milliseconds between two of them."""

from __future__ import annotations

from .cuda_runtime import Cuda
from .cuda_stream import Stream


class Event:
    """A mark that the GPU passes when everything in front of it in the stream is done."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._handle = cuda.call("cudaEventCreate")

    def record(self, stream: Stream) -> None:
        """Puts the mark into a stream, behind what is in it."""
        self._cuda.call("cudaEventRecord", self._handle, stream.handle)

    def milliseconds_since(self, earlier: Event) -> float:
        """The time from another mark to this one; both must have been passed. Resolution about half a microsecond."""
        return float(self._cuda.call("cudaEventElapsedTime", earlier._handle, self._handle))

    def close(self) -> None:
        """Gives the mark back."""
        self._cuda.release("cudaEventDestroy", self._handle)
