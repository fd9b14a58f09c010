"""The files that may become an output: never an input, and nothing that exists unless that was allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.atomic_file import require_writable
from vsfix.graph_passes.io.external_data import external_data_files
from vsfix.graph_passes.io.named_file import user_path


def require_output(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Fails early when `path` can't become an output, before any work is spent on it.

    Args:
        path: the output file.
        force: an existing file may be replaced, but never an input.
        inputs: what is read.

    Raises:
        InputError: the path is one of the inputs; also see `require_writable`.
        OutputExistsError: see `require_writable`.
    """
    if path.exists() and any(source.exists() and path.samefile(source) for source in inputs):
        raise InputError(f"{path}: is an input; the input is never written, name another output")
    require_writable(path, force=force)


def require_outputs(paths: Iterable[Path | None], *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Likewise for several outputs, of which each needs a name of its own; None stands for one that is not wanted.

    Raises:
        InputError, OutputExistsError: see `require_output`; also two outputs of one name.
    """
    wanted = [path for path in paths if path is not None]
    for path in wanted:
        require_output(path, force=force, inputs=inputs)
    if len({path.resolve() for path in wanted}) < len(wanted):
        raise InputError("two outputs have the same name; give each its own")


def input_files(model: Path, *data: str | None) -> list[Path]:
    """The files that are read: the model, the files that hold its weights, and each data set that is a file."""
    return [
        model,
        *external_data_files(model),
        *(path for name in data if name is not None for path in data_files(name)),
    ]


def data_files(name: str) -> list[Path]:
    """The file that a data set is: `rows.npz`, or what stands beside the colon of `KIND:FILE`, `FILE.csv:label=COLUMN`.

    Args:
        name: as `--data` takes it.
    """
    if name.endswith(".npz") and ":" not in name:
        return [user_path(name)]
    paths = [user_path(part) for part in (name, name.partition(":")[2], name.partition(":label=")[0]) if part]
    return list(dict.fromkeys(path for path in paths if path.is_file()))
