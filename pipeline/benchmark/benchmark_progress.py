"""The progress bar of a benchmark: what runs, how far it is, time left; on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[str], None]


@contextmanager
def benchmark_progress(total: int) -> Iterator[Advance]:
    """Yields what is called before each step with what it does.

    Args:
        total: steps.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, redirect_stdout=False, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        steps = iter(range(total))
        yield lambda text: bar.update(task, completed=next(steps, total), description=text)
