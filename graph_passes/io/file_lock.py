"""Locks on open files and folders, which the operating system releases when the process ends, however it ends."""

from __future__ import annotations

from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    _fcntl: Any = None
else:
    _fcntl = fcntl

HAS_LOCKS = _fcntl is not None


def take_lock(descriptor: int) -> bool | None:
    """Takes the lock of an open file or folder without waiting for it.

    Returns:
        False where another process holds it, None where there are no locks, as on some network file systems.
    """
    if _fcntl is None:
        return None
    try:
        _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
