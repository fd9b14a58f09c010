"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError, OutputExistsError


def require_writable(path: Path, *, force: bool) -> None:
    """Fails early when `path` can't become an output, before any work is spent on it.

    Args:
        path: the output file.
        force: an existing file may be replaced.

    Raises:
        OutputExistsError: the file exists and `force` is not given.
        InputError: the path is a folder, or its folder is missing.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if path.exists() and not force:
        raise OutputExistsError(f"{path}: exists already; pass --force to replace it")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")


@contextmanager
def atomic_path(path: Path, *, force: bool) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; on success it is synced and renamed to `path`.

    On any error the temporary file is removed and what stood at `path` before stands there still.

    Raises:
        OutputExistsError, InputError: see `require_writable`; also when the file system refuses the write.
    """
    require_writable(path, force=force)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part" + path.suffix, dir=path.parent)
    except OSError as error:
        raise InputError(f"{path}: can't write here ({error.strerror})") from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        _publish(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: can't write ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    """Flushes `temporary` to the disk, gives it the mode of an ordinary new file, and renames it to `path`."""
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
