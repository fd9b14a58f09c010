"""A path as a user writes it."""

from __future__ import annotations

from pathlib import Path

from vsfix.graph_passes.errors import InputError


def user_path(text: str) -> Path:
    """The path that a text names; `~` and `~NAME` are home folders.

    Raises:
        InputError: there is nobody of that name here.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{text}: there is no such home folder here; write the whole path") from None
