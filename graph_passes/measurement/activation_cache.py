"""Activations of a calibration set, kept in memory up to a limit and on the disk beyond it."""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from typing_extensions import Self

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.temporary_files import scratch_folder
from vsfix.graph_passes.ir.runtime import Array

from .resident_memory import freed_bytes, resident_bytes, return_freed_memory

DEFAULT_MAX_MEMORY = 2 << 30  # bytes
LEAST_GIVEN_BACK, GIVEN_BACK = 1 << 24, 16  # bytes, and the part of the limit, that are given back to make room
RESERVE = 8  # this part of the limit is left to the run that is under way


class ActivationCache:
    """Holds arrays by (batch, tensor name), for several threads at once. A context manager: its files go when it ends.

    Attributes:
        max_memory: bytes that the process may hold with them, whatever else is in it; what comes after goes to a
            temporary folder.
        spilled: bytes that were written to the disk so far.
    """

    def __init__(self, max_memory: int, resident: Callable[[], int] = resident_bytes) -> None:
        self.max_memory = max_memory
        self._resident = resident
        self.spilled = 0
        self._held = 0
        self._arrays: dict[tuple[int, str], Array | Path] = {}
        self._numbers = itertools.count()
        self._folder: Path | None = None
        self._files = ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._arrays.clear()
        self._files.close()

    def put(self, batch: int, arrays: Mapping[str, Array]) -> None:
        """Keeps the arrays of one batch."""
        for name, array in arrays.items():
            self._arrays[batch, name] = array if self._holds(array) else self._spill(array)

    def swap(self, batch: int, names: Iterable[str], arrays: Mapping[str, Array]) -> bool:
        """Keeps arrays of one batch in the place of others, in memory or not at all; whether they are kept.

        Args:
            batch: its number.
            names: of the arrays that are forgotten where the others are kept.
            arrays: by name.
        """
        old = list(names)
        freed = sum(0 if isinstance(held := self._arrays[batch, name], Path) else held.nbytes for name in old)
        new = sum(array.nbytes for array in arrays.values())
        with self._lock:
            fits = self._has_room(new - freed)
            self._held += new if fits else 0
        if fits:
            for name in old:
                self.drop(batch, name)
            self._arrays.update({(batch, name): array for name, array in arrays.items()})
        return fits

    def holds(self, batch: int, name: str) -> bool:
        """Whether an array is kept, in memory or on the disk."""
        return (batch, name) in self._arrays

    def get(self, batch: int, name: str) -> Array:
        """The array of one tensor in one batch."""
        stored = self._arrays[batch, name]
        if isinstance(stored, Path):
            loaded: Array = np.load(stored, allow_pickle=False)
            return loaded
        return stored

    def drop(self, batch: int, name: str) -> None:
        """Forgets one array and frees its place."""
        stored = self._arrays.pop((batch, name))
        if isinstance(stored, Path):
            stored.unlink()
        else:
            with self._lock:
                self._held -= stored.nbytes

    def _holds(self, array: Array) -> bool:
        """Whether there is memory for one more array, which then is taken."""
        with self._lock:
            fits = self._has_room(array.nbytes)
            self._held += array.nbytes if fits else 0
        return fits

    def _has_room(self, more: int) -> bool:
        """Whether there is memory for so many bytes more; what was freed is given back where there is not."""
        if self._fits(more):
            return True
        # each run takes again what it freed: that little is not worth clearing its pages
        if (freed_bytes() or 0) <= max(more, LEAST_GIVEN_BACK, self.max_memory // GIVEN_BACK):
            return False
        return_freed_memory()
        return self._fits(more)

    def _fits(self, more: int) -> bool:
        """Whether so many bytes more are within the limit."""
        return max(self._held, self._resident() + self.max_memory // RESERVE) + more <= self.max_memory

    def _spill(self, array: Array) -> Path:
        """Writes one array to the temporary folder."""
        try:
            with self._lock:
                if self._folder is None:
                    self._folder = self._files.enter_context(scratch_folder())
                path = self._folder / f"{next(self._numbers)}.npy"
            np.save(path, array, allow_pickle=False)
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()}: can't hold the cached activations ({error.strerror or error}); give more "
                "memory with --max-memory, fewer samples, or another disk with TMPDIR"
            ) from error
        with self._lock:
            self.spilled += array.nbytes
        return path
