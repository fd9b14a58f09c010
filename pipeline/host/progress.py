"""The stages of a command as bars on stderr, where that is a terminal and the command takes longer than a moment.

One line for each stage that runs, under the one that it is a part of: what it does, a bar, its steps, and the time
left; where its steps are unknown, the time that it has taken. Nothing of it is left when the last one is over.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vsfix.graph_passes.progress import Stage, listen

from .terminal_text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE = 2.0  # seconds in which nothing is shown
DEEPEST = 3  # stages in each other that are shown


def progress_wanted() -> bool:
    """Whether a progress bar has a terminal to be shown on."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def shown_progress(patience: float | None = None) -> Iterator[None]:
    """Shows the stages of what runs inside of it, where stderr is a terminal.

    Args:
        patience: seconds that pass before anything is shown; None for `PATIENCE`.
    """
    if not progress_wanted():
        yield
        return
    bars = ProgressBars(PATIENCE if patience is None else patience)
    try:
        with listen(bars):
            yield
    finally:
        bars.close()


class ProgressBars:
    """The bars of all stages that run.

    Args:
        patience: seconds from now on in which nothing is shown.
    """

    def __init__(self, patience: float) -> None:
        self._first = time.monotonic() + patience
        self._lock = threading.RLock()
        self._stages: dict[Stage, TaskID | None] = {}
        self._timer: threading.Timer | None = None
        self._bars: Progress | None = None

    def begin(self, stage: Stage) -> None:
        """Shows a stage, or will when there was patience enough."""
        with self._lock:
            self._stages[stage] = None
            if self._bars is not None:
                self._add(stage)
            elif (wait := self._first - time.monotonic()) <= 0:
                self._show()
            elif self._timer is None:
                self._timer = threading.Timer(wait, self._show)
                self._timer.daemon = True
                self._timer.start()

    def move(self, stage: Stage) -> None:
        """Moves the bar of a stage."""
        with self._lock:
            task = self._stages.get(stage)
            if self._bars is not None and task is not None:
                self._bars.update(task, completed=stage.done, description=self._description(stage))

    def end(self, stage: Stage) -> None:
        """Takes the bar of a stage away; with the last one the lines are free again."""
        with self._lock:
            task = self._stages.pop(stage, None)
            if self._bars is not None and task is not None:
                self._bars.remove_task(task)
            if not self._stages:
                self._hide()

    def close(self) -> None:
        """Takes everything away."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._stages.clear()
            self._hide()

    def _show(self) -> None:
        """Draws the stages that run."""
        with self._lock:
            if self._bars is not None or not self._stages:
                return
            self._bars = _progress()
            self._bars.start()
            for stage in self._stages:
                self._add(stage)

    def _hide(self) -> None:
        """Wipes what is drawn."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _add(self, stage: Stage) -> None:
        """The bar of one stage."""
        shown = sum(task is not None for task in self._stages.values())
        if self._bars is not None and shown < DEEPEST:
            text = self._description(stage)
            self._stages[stage] = self._bars.add_task(
                text, total=stage.steps, completed=stage.done, started=stage.started
            )

    def _description(self, stage: Stage) -> str:
        """The text of a stage, set in under the one that it is a part of."""
        return "  " * min(list(self._stages).index(stage), DEEPEST - 1) + printable(stage.text)


def _progress() -> Progress:
    """The bars of rich."""
    from rich.console import Console, ConsoleDimensions, RenderableType  # here: what is over soon loads nothing for it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    bar = BarColumn(None)

    class Room(Console):
        """Leaves room at the end of a line for the ^C that a terminal writes there, which would begin a line."""

        @property  # type: ignore[misc]
        def size(self) -> ConsoleDimensions:
            width, height = super().size
            return ConsoleDimensions(max(1, width - len("^C") - 1), height)

    class Bar(ProgressColumn):
        """The bar, where the steps are known."""

        def render(self, task: Task) -> RenderableType:
            return Text("") if task.total is None else bar.render(task)

    class Steps(MofNCompleteColumn):
        """The steps that are over, where their number is known."""

        def render(self, task: Task) -> Text:
            return Text("") if task.total is None else super().render(task)

    class Time(ProgressColumn):
        """The time that is left; what it has taken, where that is unknown."""

        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            left = None if task.total is None else task.time_remaining
            seconds = int(time.monotonic() - task.fields["started"]) if left is None else int(left)
            minutes, seconds = divmod(seconds, 60)
            hours, minutes = divmod(minutes, 60)
            clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
            return Text(clock if left is None else f"{clock} left")

    # Standard output may be a pipe: what is printed there must not come out here.
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=3, no_wrap=True, overflow="ellipsis")),
        Bar(table_column=Column(ratio=2)),
        Steps(table_column=Column(no_wrap=True)),
        Time(table_column=Column(no_wrap=True)),
        console=Room(file=sys.stderr, markup=False, emoji=False, highlight=False),
        refresh_per_second=4,  # little, beside what is timed
        transient=True,
        redirect_stdout=False,
        expand=True,
    )
