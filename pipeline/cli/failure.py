"""What becomes of an error: one line on stderr, an exit code, and the same line in the document of `--json`.

1   a check ran and failed
2   usage, or bad input; memory or the system refused
3   a component is missing here
4   an engine could not be parsed or built
70  a bug in vsfix: with a traceback
130 interrupted; 143 stopped by SIGTERM
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import click

from vsfix.graph_passes.errors import MissingComponentError, VsfixError, missing_package

BUG_EXIT_CODE = 70


@dataclass(frozen=True)
class Failure:
    """An error as a user is told it.

    Attributes:
        message: what, where, and what to do.
        exit_code: of the process.
        hint: the way to the help, for the terminal alone.
    """

    message: str
    exit_code: int
    hint: str = ""

    @property
    def status(self) -> str:
        """SKIP where a component is missing, else FAIL."""
        return "SKIP" if self.exit_code == MissingComponentError.exit_code else "FAIL"

    @property
    def line(self) -> str:
        """The line on stderr."""
        kind = "internal error" if self.exit_code == BUG_EXIT_CODE else "error"
        return f"{kind}: {self.message}{self.hint}"


def failure_of(error: Exception) -> Failure:
    """What a user is told of an error."""
    if isinstance(error, VsfixError):
        return Failure(str(error), error.exit_code)
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        command = "vsfix" if context is None else context.command_path
        return Failure(error.format_message(), 2, f" (see `{command} --help`)")
    if isinstance(error, MemoryError):
        return Failure(f"not enough memory here ({error}); give fewer --samples or a smaller batch size", 2)
    if isinstance(error, OSError):
        file = "" if error.filename is None else f"{error.filename}: "
        return Failure(f"{file}{error.strerror or error}", 2)
    if isinstance(error, ModuleNotFoundError) and (missing := missing_package(error)) is not None:
        return Failure(str(missing), missing.exit_code)
    return Failure(f"{type(error).__name__}: {error}", BUG_EXIT_CODE)


def wants_json_on_stdout(words: Sequence[str]) -> bool:
    """Whether a command line that could not be read as a whole asks for `--json -`."""
    return "--json=-" in words or ("--json", "-") in pairwise(words)
