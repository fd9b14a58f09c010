"""The base of all results: the terminal's text, the JSON document and the envelope are views of one dataclass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vsfix.pipeline.host.console import PIPE_WIDTH, View, envelope, json_text, view_text, write_json


class Result:
    """A result of `import vsfix`.

    `print(result)` shows what the command prints on the terminal, without colours.
    """

    command: ClassVar[str]

    def _judgement(self) -> tuple[str, str, Sequence[str]]:
        """The status word (PASS, WARN, FAIL), the verdict in one sentence, and the warnings."""
        raise NotImplementedError

    def view(self, width: int = PIPE_WIDTH) -> View:
        """The lines and tables of the terminal.

        Args:
            width: letters that a line has room for.
        """
        raise NotImplementedError

    def _details(self) -> Mapping[str, Any]:
        """The fields of the JSON document beside the envelope."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` writes: `schema_version`, `command`, `status`, `verdict`, `warnings`, the details.

        Values are those of Python: tuples, paths and infinities stay what they are.
        """
        return envelope(self.command, *self._judgement()) | dict(self._details())

    def to_json(self) -> str:
        """The document of `to_dict` as JSON text; infinities and NaN become null."""
        return json_text(self.to_dict())

    def save(self, path: str | Path, force: bool = False) -> None:
        """Writes that document into a file.

        Args:
            path: the JSON file.
            force: an existing file may be replaced.

        Raises:
            OutputExistsError, InputError: the file exists and `force` is not given, or it can't be written.
        """
        write_json(self.to_dict(), str(path), force=force)

    def __str__(self) -> str:
        return view_text(self.view())
