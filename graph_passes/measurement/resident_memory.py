"""How much memory this process holds at the moment, and how it gives back what it has freed."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from vsfix.graph_passes.errors import MissingComponentError

STATM = Path("/proc/self/statm")


def resident_bytes(statm: Path = STATM) -> int:
    """What the process holds in memory, its libraries included.

    Args:
        statm: where Linux says it; where there is no such file, psutil asks the system.

    Raises:
        MissingComponentError: neither is there.
    """
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    try:
        import psutil  # here, because Linux does without
    except ImportError:
        raise MissingComponentError(
            "this system does not say how much memory a process holds; run: pip install psutil"
        ) from None
    return int(psutil.Process().memory_info().rss)


def return_freed_memory() -> None:
    """Gives back to the system what was freed: glibc keeps it, in pieces, for each thread by itself."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


class FreedMemory:
    """Gives back what was freed once the process has grown by more than a little since the last time.

    What is given back is cleared page by page when it is taken again, which costs as much as a small convolution.

    Args:
        most: bytes by which the process may grow.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lowest = 0  # what the process held when it was given back, or later

    def give_back(self) -> None:
        """Gives it back where there may be enough of it; may be called from several threads."""
        held = resident_bytes()
        if held > self._lowest + self._most:
            return_freed_memory()
            self._lowest = resident_bytes()
        self._lowest = min(self._lowest, held)


@cache
def _malloc_trim() -> Any:
    """The function of glibc; None with another library."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
