"""The timings of kernels that TensorRT measured, kept from one build to the next.

A timing belongs to a version of TensorRT and a GPU: the default file is named after the version, and TensorRT itself
refuses one of another GPU. TensorRT-RTX measures nothing while it builds, and keeps none.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.atomic_file import atomic_path
from vsfix.graph_passes.io.named_file import NO_SUCH_FILE, why_unreadable

_LOGGER = logging.getLogger(__name__)


def default_timing_cache(version: str) -> Path:
    """Where the timings of a version of TensorRT are kept where the user names no file."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(root) if root and Path(root).is_absolute() else Path.home() / ".cache"
    return folder / "vsfix" / f"tensorrt-{version}.timing"


def read_timing_cache(path: Path) -> bytes:
    """The timings of earlier builds; none where there is no file yet.

    Raises:
        InputError: the file can't be read.
    """
    if (reason := why_unreadable(path)) == NO_SUCH_FILE:
        return b""
    if reason is not None:
        raise InputError(f"{path}: the timing cache can't be read ({reason})")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the timing cache can't be read ({error.strerror})") from error


def write_timing_cache(path: Path, timings: bytes) -> None:
    """Keeps the timings of a build. One that can't be kept costs the next build time and no more: it is only said."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path, force=True) as temporary:
            temporary.write_bytes(timings)
    except (InputError, OSError) as error:
        _LOGGER.warning("the timing cache is not kept: %s", error)
