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


@cache
def _malloc_trim() -> Any:
    """The function of glibc; None with another library."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
