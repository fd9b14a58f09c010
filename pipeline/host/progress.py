"""The progress of a benchmark: a bar with the time left on a terminal, and elsewhere lines of the log (`vsfix -v`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vsfix.pipeline.host.terminal_text import printable

Advance = Callable[[str], None]

_logger = logging.getLogger(__name__)


@contextmanager
def benchmark_progress(total: int) -> Iterator[Advance]:
    """Yields what is called before each step with what it does.

    Args:
        total: steps.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if not console.is_terminal:
        yield _log_of(total)
        return
    with Progress(*columns, console=console, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)
        steps = iter(range(total))
        yield lambda text: bar.update(task, completed=next(steps, total), description=printable(text))


def _log_of(total: int) -> Advance:
    """A line for each stage; steps that say the same are one stage."""
    said: list[str] = []

    def advance(text: str) -> None:
        if text not in said[-1:]:
            _logger.info("step %d of %d: %s", len(said) + 1, total, text)
        said.append(text)

    return advance
