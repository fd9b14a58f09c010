"""Temporary files and folders beside an output: held by the process that fills them, cleared away once it is gone.

A process that is killed leaves its temporary file behind. The next one that writes the same output removes it, and must
not take away what another, living process fills at that moment: each holds a lock on its own, which the operating
system releases when the process ends, however it ends. Where there are no such locks (Windows, some network file
systems), nothing is cleared away.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_LONGEST_SUFFIX = 24  # bytes
_LONGEST_NAME = 255 - len("..01234567.part") - _LONGEST_SUFFIX


try:
    import fcntl
except ImportError:  # Windows
    _fcntl: Any = None
else:
    _fcntl = fcntl
HAS_LOCKS = _fcntl is not None


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yields a new, empty file in the folder of `path`, and removes it at the end where it still stands there.

    Raises:
        OSError: the folder can't be written.
    """
    _clear_abandoned(path, path.parent)
    with _held(lambda: _new_file(path)) as temporary:
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path, parent: Path) -> Iterator[Path]:
    """Yields a new, empty folder in `parent` for the later `path`, and removes it at the end, however that comes.

    None but the user can look into it.

    Args:
        path: the output.
        parent: the folder in which it is made.

    Raises:
        OSError: the parent can't be written.
    """
    _clear_abandoned(path, parent)
    with _held(lambda: _new_folder(path, parent)) as temporary:
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields a new folder of the user's own in TMPDIR, for data that does not fit into memory; removed at the end.

    Raises:
        OSError: it can't be made.
    """
    parent = Path(tempfile.gettempdir())
    name = f"vsfix-{os.getuid() if hasattr(os, 'getuid') else 'scratch'}"
    with temporary_folder(parent / name, parent) as folder:
        yield folder


def _temporary_name(path: Path) -> str:
    """A name that is not taken; `_clear_abandoned` knows it again."""
    return f".{_short_name(path)}.{secrets.token_hex(4)}.part"


def _short_name(path: Path) -> str:
    """The name of an output, or a digest of it where a temporary name around it would be too long for a file system."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= _LONGEST_NAME else hashlib.sha256(name).hexdigest()


def _short_suffix(path: Path) -> str:
    """The suffix of an output, because some writers go by it; none where it is too long to be one."""
    return path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""


def _new_file(path: Path) -> tuple[Path, int]:
    """A new file and its descriptor; where it will replace one, it is as closed to others as that one."""
    temporary = path.parent / (_temporary_name(path) + _short_suffix(path))
    mode = 0o666 if replaced_permissions(path) is None else 0o600
    return temporary, os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)


def replaced_permissions(path: Path) -> int | None:
    """The permissions of the file that a new one will take the place of; None where there is none, or a link."""
    return stat.S_IMODE(path.stat().st_mode) if path.is_file() and not path.is_symlink() else None


def _new_folder(path: Path, parent: Path) -> tuple[Path, int]:
    """A new folder and its descriptor, -1 where folders have none."""
    temporary = parent / _temporary_name(path)
    temporary.mkdir(0o700)
    return temporary, os.open(temporary, os.O_RDONLY) if HAS_LOCKS else -1


@contextmanager
def _held(make: Callable[[], tuple[Path, int]]) -> Iterator[Path]:
    """Makes a file or folder and holds its lock."""
    temporary, lock = make()
    while take_lock(lock) is False or not temporary.exists():
        os.close(lock)  # another process took it for an abandoned one before it was held
        temporary, lock = make()
    if not HAS_LOCKS and lock >= 0:
        os.close(lock)  # an open file can't be renamed there
    try:
        yield temporary
    finally:
        if HAS_LOCKS:
            os.close(lock)


def _clear_abandoned(path: Path, parent: Path) -> None:
    """Removes what processes that are gone have left of the same output."""
    pattern = re.compile(rf"\.{re.escape(_short_name(path))}\.[0-9a-f]{{8}}\.part({re.escape(_short_suffix(path))})?")
    found: list[Path] = []
    with suppress(OSError):  # a folder that can't be listed is the next step's matter
        found += [entry for entry in parent.iterdir() if pattern.fullmatch(entry.name)]
    for left in found:
        with suppress(OSError):  # an entry that is not ours to remove stays
            _clear_one(left)


def _clear_one(left: Path) -> None:
    """Removes one temporary file or folder, unless a process holds it, or it is something else under such a name."""
    if not HAS_LOCKS:
        return
    # Not blocking: a pipe under that name would wait for its other end.
    lock = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(lock)
        is_folder = stat.S_ISDIR(status.st_mode)
        if not (is_folder or stat.S_ISREG(status.st_mode)) or status.st_uid != os.getuid() or not take_lock(lock):
            return
        if is_folder:
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)
    finally:
        os.close(lock)


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
