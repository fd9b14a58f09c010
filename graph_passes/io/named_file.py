"""What a user names by a text: a file, checked before it is opened, or a function of a module of theirs.

A pipe waits for its other end, and a device never ends.
"""

from __future__ import annotations

import importlib
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vsfix.graph_passes.errors import InputError, first_line

NO_SUCH_FILE = "no such file"
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


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


def named_function(source: str) -> Callable[..., Any]:
    """The function that `package.module:function` names. This runs the code of that module.

    Args:
        source: the text; the current folder is searched too.

    Raises:
        InputError: the module can't be imported, or has no such function.
    """
    module_name, _, name = source.partition(":")
    with current_folder_importable():
        try:
            found: Any = importlib.import_module(module_name)
            for part in name.split("."):
                found = getattr(found, part)
        except Exception as error:  # the code of a user may raise anything
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{source}: can't be imported ({reason}); write package.module:function") from error
    if not callable(found):
        raise InputError(f"{source}: is a {type(found).__name__}; name a function")
    function: Callable[..., Any] = found
    return function


def call_named_function(source: str) -> Any:
    """What that function gives, called without arguments. This runs the user's code.

    Args:
        source: see `named_function`.

    Raises:
        InputError: see `named_function`; also where the function fails.
    """
    function = named_function(source)
    with current_folder_importable():  # it may import more while it runs
        try:
            return function()
        except Exception as error:  # the code of a user may raise anything
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{source}: fails when called without arguments ({reason})") from error


def names_function(text: str) -> bool:
    """Whether a text has the form `package.module:function`; nothing is imported."""
    return _FUNCTION.fullmatch(text) is not None


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Puts the current folder on the import path, as `python -m` does, and takes it off again."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before
