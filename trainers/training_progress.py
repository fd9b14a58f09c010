"""The progress bar of a training run: epoch, images per second, time left; on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def training_progress(shown: bool, total: int, done: int) -> Iterator[Callable[[str], None]]:
    """Yields what moves the bar on by one step and sets its text.

    Args:
        shown: False hides it on a terminal too.
        total: steps of the whole run.
        done: steps that an earlier call has made.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (shown and console.is_terminal)
    with Progress(*columns, console=console, redirect_stdout=False, disable=hidden) as bar:
        task = bar.add_task("training", total=total, completed=done)
        yield lambda text: bar.update(task, advance=1, description=text)
