"""matplotlib, loaded and set so that a figure is the same wherever it is drawn.

Loading it reads `matplotlibrc` in the current folder before the user's own: a file that lies beside a downloaded model
may choose how text is set, by LaTeX with any preamble, and everything else. So it is loaded in another folder, and each
figure begins with its built-in settings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@contextmanager
def _outside_of_the_current_folder() -> Iterator[None]:
    """Goes to the folder of matplotlib itself for a while."""
    spec = find_spec("matplotlib")
    before = None
    with suppress(OSError):  # a current folder that is gone holds nothing
        before = Path.cwd()
    if spec is not None and spec.origin is not None and before is not None:
        os.chdir(Path(spec.origin).parent)
    try:
        yield
    finally:
        if before is not None:
            os.chdir(before)


with _outside_of_the_current_folder():
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

__all__ = [
    "Axes",
    "Figure",
    "FixedLocator",
    "FuncFormatter",
    "MaxNLocator",
    "NullFormatter",
    "NullLocator",
    "only_settings",
]


@contextmanager
def only_settings(settings: Mapping[Any, Any]) -> Iterator[None]:
    """Matplotlib's built-in settings, changed by those given and by no file; the old ones are back at the end."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield
