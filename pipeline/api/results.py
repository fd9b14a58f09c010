"""The base of all results: the terminal's text, the JSON document and the envelope are views of one dataclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from vsfix.pipeline.host.console import View, envelope, json_text, view_text, write_json
from vsfix.pipeline.host.output_file import input_files, require_outputs


@dataclass(frozen=True)
class Result(ABC):
    """A result of `import vsfix`.

    `print(result)` shows what the command prints on the terminal, without colours.

    Attributes:
        files_read: the models and the data that it was made from, where they are files; nothing is written onto them.
        data_notes: what was found while the data was read, as that it was cast; among the warnings of the document.
    """

    command: ClassVar[str]

    files_read: tuple[Path, ...] = field(default=(), kw_only=True, repr=False, compare=False)
    data_notes: tuple[str, ...] = field(default=(), kw_only=True, repr=False, compare=False)

    def require_outputs(self, *paths: str | Path | None, force: bool) -> None:
        """Refuses to write onto what was read, the weights beside a model included, before anything is written.

        Args:
            paths: the outputs; None stands for one that is not wanted.
            force: existing files may be replaced.

        Raises:
            OutputExistsError, InputError: a file exists and `force` is not given, can't be written, or was read.
        """
        wanted = [Path(path) for path in paths if path is not None]
        read = self.files_read if any(path.exists() for path in wanted) else ()
        require_outputs(wanted, force=force, inputs=[file for path in read for file in input_files(path)])

    @abstractmethod
    def _judgement(self) -> tuple[str, str, Sequence[str]]:
        """The status word (PASS, WARN, FAIL), the verdict in one sentence, and the warnings."""

    @abstractmethod
    def view(self) -> View:
        """The lines and tables of the terminal."""

    @abstractmethod
    def _details(self) -> Mapping[str, Any]:
        """The fields of the JSON document beside the envelope."""

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` writes: `schema_version`, `command`, `status`, `verdict`, `warnings`, the details.

        Values are those of Python: tuples, paths and infinities stay what they are.
        """
        details = {name: value for name, value in self._details().items() if name not in ("files_read", "data_notes")}
        document = envelope(self.command, *self._judgement()) | details
        return document | {"warnings": [*document["warnings"], *self.data_notes]}

    def to_json(self) -> str:
        """The document of `to_dict` as JSON text; infinities and NaN become null."""
        return json_text(self.to_dict())

    def save(self, path: str | Path, force: bool = False) -> None:
        """Writes that document into a file.

        Args:
            path: the JSON file.
            force: an existing file may be replaced.

        Raises:
            OutputExistsError, InputError: the file exists and `force` is not given, it can't be written, or was read.
        """
        self.require_outputs(path, force=force)
        write_json(self.to_dict(), str(path), force=force)

    def __str__(self) -> str:
        return view_text(self.view())
