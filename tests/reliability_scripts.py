"""The scripts of benchmarks/reliability, which import each other by bare names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

FOLDER = Path(__file__).parents[1] / "benchmarks" / "reliability"
_NAMES = ("message_mutation", "model_mutation", "seeds", "forked", "trial", "killing", "faults", "cross_check", "load")


@contextmanager
def reliability_scripts() -> Iterator[SimpleNamespace]:
    """Yields the modules as attributes; afterwards none of them is left in this process."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in _NAMES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in _NAMES:
            sys.modules.pop(name, None)
