"""The callbacks of TensorRT: its log, which stays off the terminal, and the progress of a build.

The classes of both derive from those of the library at hand, `tensorrt` or `tensorrt_rtx`, and so are made for it.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from typing_extensions import Self

from vsfix.graph_passes.progress import Stage, listening

_MOST_LINES, _LONGEST_LINE = 6, 400
_LOGGER = logging.getLogger(__name__)


class Log(Protocol):
    """A logger of TensorRT that keeps what went wrong.

    Attributes:
        errors: in the order in which they came.
        warnings: the same.
    """

    errors: list[str]
    warnings: list[str]

    def forget(self) -> None:
        """Empties it, so that what it keeps is of what comes next."""


def show_failure(log: Log, name: str) -> None:
    """Says on the log of vsfix what TensorRT said of a failure: its errors, then its warnings, each once, and few.

    Args:
        log: since the failing call began.
        name: of the library, before each line.
    """
    hidden = [] if _LOGGER.isEnabledFor(logging.DEBUG) else [(logging.ERROR, text) for text in log.errors]
    hidden += [] if _LOGGER.isEnabledFor(logging.INFO) else [(logging.WARNING, text) for text in log.warnings]
    lines = list(dict.fromkeys((level, " ".join(text.split())) for level, text in hidden))
    for level, text in lines[:_MOST_LINES]:
        _LOGGER.log(level, "%s: %s", name, text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]} ...")
    if len(lines) > _MOST_LINES:
        _LOGGER.warning("%s: %d more lines; -vv shows all of them", name, len(lines) - _MOST_LINES)


def first_error(log: Log, otherwise: str = "") -> str:
    """The first error that a log keeps, in one line; where there is none, what else is known."""
    return " ".join(next(iter(log.errors), otherwise or "it does not say why").split())


class BuildProgress(Protocol):
    """Somebody who shows how far a build is."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins, in another one or at the top."""

    def step(self, phase: str, done: int) -> None:
        """So many steps of a phase are done."""

    def finish(self, phase: str) -> None:
        """A phase is over."""


class BuildStages:
    """The phases of a build as stages, to whoever listens where this is made: TensorRT has threads of its own."""

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}
        self._listener = listening()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins, whatever it is a part of."""
        self._stages[phase] = Stage(phase, steps, listener=self._listener)

    def step(self, phase: str, done: int) -> None:
        """So many steps of a phase are done."""
        if phase in self._stages:
            self._stages[phase].set(done)

    def finish(self, phase: str) -> None:
        """A phase is over."""
        if phase in self._stages:
            self._stages.pop(phase).close()


def make_log(library: Any) -> Log:
    """The logger that TensorRT writes to instead of the terminal: errors and warnings are kept, all of it goes to
    our own log."""

    class KeptLog(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)  # super().__init__() alone leaves the C++ half unmade
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def forget(self) -> None:
            self.errors.clear()
            self.warnings.clear()

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR):
                self.errors.append(message)
                _LOGGER.debug("%s", message)
            elif severity == library.ILogger.WARNING:
                self.warnings.append(message)
                _LOGGER.info("%s", message)
            else:
                _LOGGER.debug("%s", message)

    kept: Log = KeptLog()
    return kept


class Interruption:
    """Ctrl-C while TensorRT is building: it ends the build, and is raised once TensorRT has returned.

    An exception must not pass through TensorRT's C++, so for the time of the build the signal only leaves a note.

    Attributes:
        came: whether it was pressed.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there Python lets a handler be set
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, *_: object) -> None:
        self.came = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self.came and error is None:
            raise KeyboardInterrupt


def make_monitor(library: Any, progress: BuildProgress | None, interruption: Interruption) -> Any:
    """The object that TensorRT tells its progress to; None where this version (8.6) tells none."""
    if not hasattr(library, "IProgressMonitor"):
        return None

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            _show(lambda shown: shown.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            _show(lambda shown: shown.step(phase_name, step + 1))
            return not interruption.came

        def phase_finish(self, phase_name: str) -> None:
            _show(lambda shown: shown.finish(phase_name))

    def _show(action: Callable[[BuildProgress], None]) -> None:
        """An exception must not pass through TensorRT here either, and a build does not fail for want of a bar."""
        if progress is not None:
            try:
                action(progress)
            except Exception:
                _LOGGER.debug("the progress can't be shown", exc_info=True)

    return Monitor()
