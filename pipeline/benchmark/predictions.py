"""The decisions behind a benchmark as a file, so that anyone can count them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vsfix.graph_passes.io.atomic_file import atomic_path

from .result import Benchmark


def write_predictions(found: Benchmark, path: Path, *, force: bool) -> None:
    """Writes an `.npz` file: the top-1 class of each sample under the label of each row, and `labels`, shape (N,) each.

    Raises:
        OutputExistsError, InputError: see `atomic_path`.
    """
    arrays: dict[str, Any] = dict(found.predictions)
    with atomic_path(path, force=force) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
