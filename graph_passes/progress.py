"""The progress of what takes long: its stages, named in a user's words, told to whoever listens.

    with stage("noise average", draws) as average:
        for draw in range(draws):
            ...
            average.step()

A library only names what it does. Nobody listens unless a program asks for it (`listen`), as the command line does on a
terminal, and then a stage costs two calls. Each is a line of the log too, at INFO when it begins, and at DEBUG with its
time when it is over: `vsfix -v` and `-vv`. Who listens is a matter of the context (`contextvars`): a thread that is
started in between tells nothing, but steps of a stage may be told by any thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

_LOGGER = logging.getLogger(__name__)


class Listener(Protocol):
    """Somebody who shows how far a computation is. Stages may stand in each other, and end in any order."""

    def begin(self, stage: Stage) -> None:
        """A stage begins."""

    def move(self, stage: Stage) -> None:
        """A stage has another number of steps done, or another text."""

    def end(self, stage: Stage) -> None:
        """A stage is over, or has failed."""


_listener: ContextVar[Listener | None] = ContextVar("vsfix_progress", default=None)


def listening() -> Listener | None:
    """Whoever listens here, for a stage that begins in another thread; None for nobody."""
    return _listener.get()


class Stage:
    """A part of a computation.

    Args:
        text: what it does, in a few words.
        steps: how many it has; None where that is unknown.
        done: how many of them an earlier call has made.
        listener: whom it is told to; None for whoever listens in this context.

    Attributes:
        text: what it does now.
        done: how many steps are over.
        started: when it began, on the clock of `time.monotonic`.
    """

    def __init__(self, text: str, steps: int | None = None, done: int = 0, listener: Listener | None = None) -> None:
        self.text, self.steps, self.done = text, steps, done
        self.started = time.monotonic()
        self._begun = False
        self._listener = listener or listening()
        _LOGGER.info("%s", text)
        if self._listener is not None:
            self._listener.begin(self)

    def step(self, text: str | None = None) -> None:
        """One more step is over.

        Args:
            text: what the stage is called from now on; None for what it was called before.
        """
        self.set(self.done + 1, text)

    def next(self, text: str) -> None:
        """The next step begins, and the one before it is over; a text that is new is a line of the log.

        Args:
            text: what it does.
        """
        if text != self.text:
            number = self.done + 1 + self._begun
            _LOGGER.info("%s", text if self.steps is None else f"step {number} of {self.steps}: {text}")
        self.set(self.done + self._begun, text)
        self._begun = True

    def set(self, done: int, text: str | None = None) -> None:
        """So many steps are over.

        Args:
            done: that number.
            text: see `step`.
        """
        self.done, self.text = done, self.text if text is None else text
        if self._listener is not None:
            self._listener.move(self)

    def close(self) -> None:
        """The stage is over."""
        _LOGGER.debug("%s: %.2f s", self.text, time.monotonic() - self.started)
        if self._listener is not None:
            self._listener.end(self)


@contextmanager
def stage(text: str, steps: int | None = None, done: int = 0) -> Iterator[Stage]:
    """A stage for the time of a `with`, or of a function that it decorates.

    Args:
        text: what it does, in a few words.
        steps: how many it has; None where that is unknown.
        done: how many of them an earlier call has made.
    """
    begun = Stage(text, steps, done)
    try:
        yield begun
    finally:
        begun.close()


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Tells the stages that begin inside of it to somebody, and to nobody else."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
