"""The output of commands: tables and JSON on stdout; the log and progress bars belong to stderr.

Every JSON document begins with the same entries, the envelope: `schema_version`, `command`, `status` (PASS, WARN, FAIL
or SKIP), `verdict` (one sentence) and `warnings`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np
from rich.table import Table
from rich.text import Text

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.atomic_file import atomic_path

from .output_file import require_output
from .table_text import PlainConsole, plain_lines, print_table_on
from .terminal_text import print_line, printable

SCHEMA_VERSION = 1
View: TypeAlias = Iterable[str | Table]  # a result as a terminal shows it: lines and tables


def print_view(view: View) -> None:
    """Prints lines and tables on stdout, in their order, as wide as the terminal; a pipe gets them plain."""
    if sys.stdout is None:  # closed
        return
    if not sys.stdout.isatty():
        for part in view:
            for line in _plain_lines(part):
                print_line(line)
        return
    # No markup and no emoji: names and install lines hold square brackets and colons.
    console = PlainConsole(file=sys.stdout, markup=False, emoji=False, highlight=False)
    for part in view:
        if isinstance(part, Table):
            print_table_on(console, part)
        else:
            console.print(Text(printable(part)))  # breaks between words


def view_text(view: View) -> str:
    """Lines and tables as a pipe gets them, without the last line break."""
    return "\n".join(line for part in view for line in _plain_lines(part))


def _plain_lines(part: str | Table) -> Iterable[str]:
    """A part of a view as a pipe gets it."""
    return plain_lines(part) if isinstance(part, Table) else [printable(part)]


def require_json_target(
    path: str | None, *, force: bool, inputs: Iterable[Path] = (), outputs: Iterable[Path | None] = ()
) -> None:
    """Fails before any work is done when `--json` names a file that can't be written.

    Args:
        path: as `--json` takes it.
        force: an existing file may be replaced.
        inputs: what is read.
        outputs: what else the command writes; None for what it does not.

    Raises:
        OutputExistsError, InputError: see `require_output`; also where it is another output.
    """
    if path is None or path == "-":
        return
    require_output(Path(path), force=force, inputs=inputs)
    if Path(path).resolve() in [output.resolve() for output in outputs if output is not None]:
        raise InputError(f"--json {path}: is another output of this command; name another file")


def is_document_of(command: str, path: Path) -> bool:
    """Whether a file is a document that the command has written."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "schema_version" in found and found.get("command") == command


def envelope(command: str, status: str, verdict: str, warnings: Iterable[str]) -> dict[str, Any]:
    """The fields that every JSON document begins with."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "status": status,
        "verdict": verdict,
        "warnings": list(warnings),
    }


def write_json(result: Mapping[str, Any], path: str, *, force: bool) -> None:
    """Writes a result as JSON, with `schema_version` in front.

    JSON has no infinity and no NaN: they become null.

    Args:
        result: dicts, sequences, strings, numbers, enums, paths.
        path: the file, or `-` for stdout.
        force: an existing file may be replaced.

    Raises:
        OutputExistsError, InputError: see `atomic_path`.
    """
    text = json_text(result)
    if path == "-":
        click.echo(text)
        return
    with atomic_path(Path(path), force=force) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def json_text(result: Mapping[str, Any]) -> str:
    """A result as JSON, with `schema_version` in front; infinities and NaN become null."""
    return json.dumps({"schema_version": SCHEMA_VERSION} | _plain(result), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """The value in types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
