"""The output of a result: the terminal shows it, `--json` gets its document, also where it was refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vsfix.graph_passes.errors import MissingComponentError, VsfixError

if TYPE_CHECKING:
    from vsfix.pipeline.host.console import View
    from vsfix.results import Result


class Output:
    """Where the result of one command goes.

    Args:
        is_alone: nothing but the JSON document goes to stdout.
    """

    def __init__(self, is_alone: bool) -> None:
        self.is_alone = is_alone
        self.document: Mapping[str, Any] | None = None

    def show(self, result: Result, *, view: View | None = None) -> None:
        """Keeps the document of a result, and prints what the terminal shows of it, or another view."""
        from vsfix.pipeline.host.console import table_width

        self.document = result.to_dict()
        self.show_view(result.view(table_width()) if view is None else view)

    def show_view(self, view: View) -> None:
        """Prints lines and tables."""
        from vsfix.pipeline.host.console import print_view

        if not self.is_alone:
            print_view(view)

    def wrote(self, *paths: object) -> None:
        """Says what was written; None stands for what was not."""
        self.show_view(f"wrote {path}" for path in paths if path is not None)


@contextmanager
def json_output(command: str, path: str | None, *, force: bool) -> Iterator[Output]:
    """Writes the document of a command at the end, whatever the end is.

    Where the command was refused, or failed before it had a result, the envelope says so.

    Args:
        command: its name.
        path: as `--json` takes it.
        force: an existing file may be replaced.
    """
    from vsfix.pipeline.host.console import envelope, write_json

    output = Output(path == "-")
    try:
        yield output
    except VsfixError as error:
        refused: Result | None = getattr(error, "result", None)
        if output.document is None and refused is not None:
            output.show(refused)
        elif output.document is None:
            status = "SKIP" if isinstance(error, MissingComponentError) else "FAIL"
            output.document = envelope(command, status, str(error), ())
        raise
    finally:  # also where whoever reads what is printed has gone
        if path and output.document is not None:
            write_json(output.document, path, force=force)
