"""Checks of a path before it is opened: a file, of a size that such a file can have.

A pipe waits for its other end, and a device never ends.
"""

from __future__ import annotations

import stat
from pathlib import Path

from vsfix.graph_passes.errors import InputError

NO_SUCH_FILE = "no such file"


def why_unreadable(path: Path, most: int | None = None) -> str | None:
    """Why a path can't be read as a file; None where it can be.

    Args:
        path: as it was named.
        most: the bytes that such a file has at most; None for any number.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return NO_SUCH_FILE
    except OSError as error:
        return f"can't be read ({error.strerror})"
    if stat.S_ISDIR(status.st_mode):
        return "is a folder; name a file"
    if not stat.S_ISREG(status.st_mode):
        return "is a pipe, a socket or a device, and none of them is read; name a file"
    if most is not None and status.st_size > most:
        return f"is of {status.st_size >> 20} MiB, and no file of this kind is larger than {most >> 20} MiB"
    return None


def user_path(text: str) -> Path:
    """The path that a text names; `~` and `~NAME` are home folders.

    Raises:
        InputError: there is no such home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{text}: there is no such home folder here; write the whole path") from None
