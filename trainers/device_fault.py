"""What an error of a runtime says about its device, in the words of CUDA, of torch's allocator and of ONNX Runtime.

None of the runtimes has classes for all of these. Source: `cudaGetErrorString` of the CUDA runtime, and the messages of
torch 2.13 and ONNX Runtime 1.32.
"""

from __future__ import annotations

from vsfix.graph_passes.errors import MissingComponentError, OutOfMemoryError, VsfixError

SMALLER_BATCH = "give a smaller batch size"
_NO_MEMORY = ("out of memory", "can't allocate memory", "Failed to allocate memory", "bad_alloc")
_LOST = (
    *("no CUDA-capable device", "busy or unavailable", "invalid device ordinal", "invalid device context"),
    *("uncorrectable ECC", "uncorrectable NVLink", "GPU is lost", "CUDA error: unknown error", "CUDA failure 999"),
)


def device_fault(error: BaseException, where: str, cure: str) -> VsfixError | None:
    """The error to raise in the place of one that is the device's and not the model's; None for any other.

    Args:
        error: what a runtime raised.
        where: what ran where, as `torch (cuda)`.
        cure: what to do about too little memory.
    """
    text = str(error)
    said = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[:160]
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return OutOfMemoryError(f"{where}: the memory does not suffice ({said}); {cure}")
    if any(words in text for words in _LOST):
        return MissingComponentError(
            f"{where}: the GPU does not answer any more ({said}); see nvidia-smi and the Xid lines of dmesg, and run "
            "the command again"
        )
    return None
