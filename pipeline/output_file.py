"""What may become an output: never an input, and nothing that exists unless that was allowed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vsfix.graph_passes.atomic_file import require_writable
from vsfix.graph_passes.errors import InputError


def require_output(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Fails early when `path` can't become an output, before any work is spent on it.

    Args:
        path: the output file.
        force: an existing file may be replaced, but never an input.
        inputs: what is read.

    Raises:
        InputError: the path is one of the inputs; also see `require_writable`.
        OutputExistsError: see `require_writable`.
    """
    if path.exists() and any(source.exists() and path.samefile(source) for source in inputs):
        raise InputError(f"{path}: is an input; the input is never written, name another output")
    require_writable(path, force=force)
