"""The progress of a build as bars on a terminal, one for each phase that TensorRT is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vsfix.pipeline.host.console import progress_wanted
from vsfix.pipeline.host.terminal_text import printable
from vsfix.pipeline.tensorrt.log import BuildProgress


class ProgressBars:
    """Bars that come and go with the phases.

    Args:
        bars: where they are drawn.
    """

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Shows a phase, under the one that it is part of."""
        indent = "  " if parent else ""
        self._tasks[phase] = self._bars.add_task(indent + printable(phase), total=steps)

    def step(self, phase: str, done: int) -> None:
        """Moves the bar of a phase."""
        if phase in self._tasks:
            self._bars.update(self._tasks[phase], completed=done)

    def finish(self, phase: str) -> None:
        """Takes the bar of a phase away."""
        if phase in self._tasks:
            self._bars.remove_task(self._tasks.pop(phase))


@contextmanager
def build_progress() -> Iterator[BuildProgress | None]:
    """Bars on stderr while a build runs; None where there is no terminal for them."""
    if not progress_wanted():
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True, markup=False, emoji=False)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bars:
        yield ProgressBars(bars)
