"""The output of a result: the terminal shows it, `--json` gets its document, also where it was refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .failure import failure_of

if TYPE_CHECKING:
    from vsfix.pipeline.host.console import View
    from vsfix.results import Result


class Output:
    """Where the result of one command goes.

    Args:
        command: its name.
        path: as `--json` takes it.
        force: existing files may be replaced.
        again: so may the document of an earlier call of the same command.
    """

    def __init__(self, command: str, path: str | None, *, force: bool, again: bool = False) -> None:
        self.command = command
        self.document: Mapping[str, Any] | None = None
        self._path, self._force, self._again = path, force, again
        self._is_allowed, self._replaces = path == "-", force

    def require(
        self,
        outputs: Iterable[Path | None] = (),
        *,
        inputs: Sequence[Path] = (),
        rewritten: Iterable[Path | None] = (),
    ) -> None:
        """Fails before any work is done where an output can't be written, the document first.

        Args:
            outputs: what the command writes beside the document; None for what is not wanted.
            inputs: what it reads.
            rewritten: what it writes under rules of its own, and the document must not be.

        Raises:
            OutputExistsError, InputError: see `require_outputs`.
        """
        from vsfix.pipeline.host.console import is_document_of, require_json_target
        from vsfix.pipeline.host.output_file import require_outputs

        wanted = list(outputs)
        is_own = self._again and self._path is not None and is_document_of(self.command, Path(self._path))
        self._replaces = self._force or is_own
        require_json_target(self._path, force=self._replaces, inputs=inputs, outputs=[*wanted, *rewritten])
        self._is_allowed = True
        require_outputs(wanted, force=self._force, inputs=inputs)

    def show(self, result: Result, *, view: View | None = None) -> None:
        """Keeps the document of a result, and prints what the terminal shows of it, or another view."""
        self.document = result.to_dict()
        self.show_view(result.view() if view is None else view)

    def tell(
        self, status: str, verdict: str, warnings: Iterable[str] = (), details: Mapping[str, Any] | None = None
    ) -> None:
        """Keeps a document: the envelope, and what else is to stand in it."""
        from vsfix.pipeline.host.console import envelope

        self.document = envelope(self.command, status, verdict, warnings) | dict(details or {})

    def show_view(self, view: View) -> None:
        """Prints lines and tables, where standard output is not the document's alone."""
        from vsfix.pipeline.host.console import print_view

        if self._path != "-":
            print_view(view)

    def wrote(self, *paths: object) -> None:
        """Says what was written; None stands for what was not."""
        self.show_view(f"wrote {path}" for path in paths if path is not None)

    def fail(self, error: Exception) -> None:
        """Keeps the document of an error: the result that was refused, or the envelope where there is none."""
        refused: Result | None = getattr(error, "result", None)
        if refused is not None:
            self.show(refused)
            return
        failure = failure_of(error)
        self.tell(failure.status, failure.message)

    def write(self) -> None:
        """Writes the document, where one is wanted and no file stands in its way."""
        from vsfix.pipeline.host.console import write_json

        if self._path and self.document is not None and self._is_allowed:
            write_json(self.document, self._path, force=self._replaces)


@contextmanager
def json_output(command: str, path: str | None, *, force: bool, again: bool = False) -> Iterator[Output]:
    """Writes the document of a command at the end, whatever the end is.

    Where the command was refused, or failed before it had a result, the envelope says so; a file gets it only after
    `Output.require` has allowed it. What can't be read of a command line ends elsewhere: `main`.

    Args:
        command: its name.
        path: as `--json` takes it.
        force: an existing file may be replaced.
        again: so may the document of an earlier call, for a command that goes on where it was broken off.
    """
    output = Output(command, path, force=force, again=again)
    try:
        yield output
    except (click.ClickException, BrokenPipeError):
        raise
    except Exception as error:
        if output.document is None:
            output.fail(error)
        raise
    finally:  # also where whoever reads what is printed has gone
        output.write()
