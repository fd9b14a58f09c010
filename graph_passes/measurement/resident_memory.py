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


def freed_bytes() -> int | None:
    """What was freed and not given back; None where the library does not say."""
    information = _malloc_information()
    return None if information is None else int(information().free)


class FreedMemory:
    """Gives back what was freed where the process has grown, and much of what it grew by is free.

    What is given back is cleared page by page when it is taken again: that took half of the time of a measurement.

    Args:
        most: bytes by which the process may grow before it is looked at, half of them free.
        enough: bytes that the process may hold before anything is given back.
    """

    def __init__(self, most: int, enough: int = 0) -> None:
        self._most = most
        self._enough = enough
        self._lowest = 0  # what the process held when it was looked at, or later

    def give_back(self) -> None:
        """Gives it back where there may be enough of it; may be called from several threads."""
        held = resident_bytes()
        if held > max(self._lowest + self._most, self._enough):
            freed = freed_bytes()
            if freed is None or freed > self._most // 2:
                return_freed_memory()
            self._lowest = resident_bytes()
        self._lowest = min(self._lowest, held)


class _Information(ctypes.Structure):
    """mallinfo2 of glibc, of which `fordblks` is what is free."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in (*"abcdefgh", "free", "keepcost"))


@cache
def _malloc_information() -> Any:
    """The function of glibc 2.33; None with an older or another library."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is not None:
        function.restype = _Information
    return function


@cache
def _malloc_trim() -> Any:
    """The function of glibc; None with another library."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
