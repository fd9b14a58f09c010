"""Whether an error of torch means that the memory of a device did not suffice."""

from __future__ import annotations

import torch

_TEXTS = ("out of memory", "can't allocate memory")  # of CUDA libraries, and of the allocator for the CPU


def is_out_of_memory(error: BaseException) -> bool:
    """Whether fewer samples at once might have gone well: torch has a class for this on GPUs alone."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in _TEXTS)
