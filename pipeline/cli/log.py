"""The log of a command on stderr, and how much of it: `vsfix -v COMMAND` and `vsfix COMMAND -v` are the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click

from vsfix.pipeline.host.terminal_text import print_line, printable

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class CommandLog:
    """How much a command says.

    Args:
        logger: of the package.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._count = 0
        self.add(0)

    def add(self, count: int) -> None:
        """Takes so many `-v` more."""
        self._count += count
        self._logger.setLevel(_LEVELS[min(self._count, len(_LEVELS) - 1)])


@contextmanager
def command_log() -> Iterator[CommandLog]:
    """Sends the log of vsfix to stderr while a command runs."""
    logger = logging.getLogger("vsfix")
    handler = _Handler()
    handler.setFormatter(_LineFormatter("vsfix: %(levelname)s: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    try:
        yield CommandLog(logger)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def take_verbose(ctx: click.Context, param: click.Parameter, value: int) -> None:
    """The callback of `-v`, wherever it stands."""
    log = ctx.find_object(CommandLog)
    if log is not None:
        log.add(value)


class _Handler(logging.Handler):
    """Writes to what is stderr at the time: progress bars take its place, and move on for each line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one entry."""
        try:
            for line in self.format(record).splitlines():
                print_line(line, err=True)
        except Exception:
            self.handleError(record)


class _LineFormatter(logging.Formatter):
    """Entries of the log in one line each."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The entry without its traceback."""
        return printable(super().formatMessage(record))
