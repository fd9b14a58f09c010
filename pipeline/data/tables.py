"""Tables: `.csv` and `.tsv` files, and data frames of pandas or polars. Their columns are the inputs of a model.

    a model of one input            its columns in the order of the table: all numeric ones but the label
    a model of an input per column  each column by its name, as skl2onnx has it

The label is the column `label`, `labels` or `target`, or the one that a person names: `FILE.csv:label=price`. Columns
of text are left out; a column of numbers with a cell that is none is refused, by row and column.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsfix.graph_passes.errors import DataError, InputError, few_of
from vsfix.graph_passes.io.named_file import why_unreadable
from vsfix.graph_passes.ir.runtime import Array

_LABELS = ("label", "labels", "target")
_FILE = re.compile(r"(?P<path>.*\.(?:csv|tsv))(?::label=(?P<label>.+))?", re.IGNORECASE | re.DOTALL)
_SHOWN = 8  # names of columns in a message
_WHOLE = 18  # digits that an int64 holds in any case
_WITH_COMMA = re.compile(r"[+-]?\d+(\.\d{3})*(,\d+)+(\.\d+)?")  # of decimals, or of thousands
_DELIMITERS = (",", ";", "\t")
_POINT = "write numbers with a point and no other mark"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: where it is from, for messages.
        columns: the numbers of each numeric column by its name, shape (N,).
        texts: the names of the columns that hold text.
        rows: N.
    """

    name: str
    columns: Mapping[str, Array]
    texts: tuple[str, ...]
    rows: int

    def label_column(self, wanted: str | None) -> str | None:
        """The name of the column of labels; None where there is none.

        Args:
            wanted: the one that a person names; None looks for the usual names.

        Raises:
            InputError: there is no such column, or several have the usual names.
        """
        names = (*self.columns, *self.texts)
        if wanted is not None:
            if wanted not in names:
                raise InputError(f"{self.name}: has no column '{wanted}'; it holds {few_of(names, _SHOWN)}")
            return wanted
        found = [name for name in names if name.strip().lower() in _LABELS]
        if len(found) > 1:
            raise InputError(
                f"{self.name}: which is the label, {' or '.join(found)}? Name it, as FILE.csv:label={found[0]}"
            )
        return found[0] if found else None

    def inputs(self, names: Sequence[str], label: str | None, width: int | None) -> dict[str, Array]:
        """The arrays that a model takes, by the name of the input.

        Args:
            names: of the inputs.
            label: the name of the column of labels.
            width: the columns that the only input takes; None for any number.

        Returns:
            shape (N, columns) for a model of one input, (N, 1) where each input is a column.

        Raises:
            DataError: a column is missing or holds text, or there are too few or too many.
        """
        if len(names) > 1 or (names[0] in self.columns and width == 1):
            return {name: self._column(name)[:, np.newaxis] for name in names}
        chosen = [name for name in self.columns if name != label]
        if not chosen or (width is not None and len(chosen) != width):
            left_out = [*(name for name in self.columns if name == label), *self.texts]
            others = f"; not counted: {few_of(left_out, _SHOWN)}" if left_out else ""
            # One too many, and none has the name of a label: the last may be it.
            is_label = label is None and width is not None and len(chosen) == width + 1
            hint = f"; where one of them is the label, say which: FILE.csv:label={chosen[-1]}" if is_label else ""
            held = few_of(chosen, _SHOWN) or "none"
            raise DataError(
                f"{self.name}: has {len(chosen)} columns of numbers ({held}{others}), the model "
                f"takes {width or 'one at least'}; give those that it takes, in its order{hint}"
            )
        return {names[0]: np.stack([self.columns[name] for name in chosen], axis=1)}

    def left_out(self, names: Sequence[str], label: str | None) -> str | None:
        """What a person should know of the columns of text that are no input; None where there is none."""
        texts = [name for name in self.texts if name != label]
        if len(names) != 1 or not texts:
            return None
        return f"{self.name}: columns of text are left out: {few_of(texts, _SHOWN)}"

    def labels(self, label: str | None) -> Array | None:
        """The labels, shape (N,): whole numbers for classes, else floats; None where there is no such column.

        Raises:
            DataError: they are texts.
        """
        if label is not None and label in self.texts:
            raise DataError(
                f"{self.name}: column '{label}' holds text; labels are the numbers of the classes, from 0 on"
            )
        return None if label is None else self.columns[label]

    def _column(self, name: str) -> Array:
        """One column by the name of an input."""
        if name in self.columns:
            return self.columns[name]
        if name in self.texts:
            raise DataError(f"{self.name}: column '{name}' holds text; numbers are needed")
        held = few_of((*self.columns, *self.texts), _SHOWN)
        raise DataError(
            f"{self.name}: has no column '{name}', which the model takes; it holds {held}. Inputs of more than one "
            "column go into an .npz file: numpy.savez('rows.npz', **arrays), an array for each input by its name"
        )


def table_file(text: str) -> tuple[str, str | None] | None:
    """The path of the table and the name of its label that a text names; None for another text.

    Args:
        text: as `--data` takes it: `FILE.csv`, `FILE.tsv`, or either with `:label=COLUMN` after it.
    """
    found = _FILE.fullmatch(text)
    return None if found is None else (found["path"], found["label"])


def is_frame(data: object) -> bool:
    """Whether it is a data frame, of pandas, polars or another library with the same words."""
    return hasattr(data, "columns") and hasattr(data, "dtypes") and hasattr(data, "__getitem__")


def read_frame(frame: Any, name: str) -> Table:
    """The table of a data frame.

    Args:
        frame: of pandas, polars or another library with the same words.
        name: what messages call it.

    Raises:
        DataError: a missing value, two columns of one name, or a column that can't be read.
    """
    given = list(frame.columns)
    _require_names([str(column) for column in given], name)
    columns: dict[str, Array] = {}
    texts: list[str] = []
    for column in given:
        values = frame[column]
        array = np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
        if array.dtype.kind == "O":
            cells = array.tolist()
            array = np.asarray(cells) if all(_is_number(cell) for cell in cells) else _partly(cells, str(column), name)
        if array.dtype.kind in "fiub":
            columns[str(column)] = array
            _require_present(array, str(column), name)
        else:
            texts.append(str(column))
    return Table(name, columns, tuple(texts), len(frame))


def read_table(path: Path) -> Table:
    """The table of a `.csv` or `.tsv` file, whose first row names the columns; a column without a name is left out.

    Raises:
        InputError: no such file, or it can't be opened.
        DataError: no table, no row of names, or a cell of a numeric column that is empty or no number.
    """
    if (reason := why_unreadable(path)) is not None:
        raise InputError(f"{path}: {reason}")
    with _one_line(path), path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        is_tsv = path.suffix.lower() == ".tsv"
        delimiter = "\t" if is_tsv else max(_DELIMITERS, key=first.count)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names = next(reader, [])
        _require_header(names, path)
        cells: list[list[str]] = [[] for _ in names]
        lines: list[int] = []
        for row in reader:
            if not row:  # an empty line
                continue
            if len(row) != len(names):
                has = f"{path}: line {reader.line_num} has {len(row)} cells, the first row {len(names)}"
                split = delimiter == "," and len(row) > len(names)
                raise DataError(f"{has}; commas separate cells: {_POINT}, texts in quotes" if split else has)
            lines.append(reader.line_num)
            for column, cell in zip(cells, row, strict=True):
                column.append(cell)
    if not lines:
        raise DataError(f"{path}: holds no row beside that of the names")
    columns: dict[str, Array] = {}
    texts: list[str] = []
    for name, column in zip(names, cells, strict=True):
        if not name.strip():  # the index that pandas writes
            continue
        array = _numbers(column, lines, f"{path}: line", name)
        if array is None:
            texts.append(name)
        else:
            columns[name] = array
    return Table(str(path), columns, tuple(texts), len(lines))


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What the readers raise, as an error of one line."""
    try:
        yield
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save it as that") from None
    except csv.Error as error:
        raise DataError(f"{path}: is no table of cells ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None


def _require_header(names: Sequence[str], path: Path) -> None:
    """Refuses a table whose first row names no columns."""
    if not names:
        raise DataError(f"{path}: is empty; the first row names the columns")
    if all(_number(name) is not None for name in names):
        raise DataError(f"{path}: the first row holds numbers; it must name the columns")
    _require_names([name for name in names if name.strip()], str(path))


def _require_names(names: Sequence[str], what: str) -> None:
    """Refuses two columns of one name."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{what}: two columns are called '{twice}'; give each a name of its own")


def _numbers(cells: Sequence[str], lines: Sequence[int], line: str, name: str) -> Array | None:
    """The numbers of a column: whole ones where all cells are written so; None for a column of text.

    Args:
        cells: of the column.
        lines: of each cell.
        line: what messages call one.
        name: of the column.

    Raises:
        DataError: some cells are numbers, and another one is not.
    """
    found = [_number(cell) for cell in cells]
    if None not in found:
        return np.array(found)
    is_text = all(number is None for number in found) and any(cell.strip() for cell in cells)
    wrong = [row for row, number in enumerate(found) if number is None and (cells[row].strip() or not is_text)]
    row = wrong[0]  # in a text, of the cells that hold something
    if all(_WITH_COMMA.fullmatch(cells[each].strip()) for each in (wrong if is_text else wrong[:1])):
        raise DataError(
            f"{line} {lines[row]}, column '{name}' is '{cells[row]}'; {_POINT}, as 0.5; semicolons, commas or tabs "
            "may separate the cells"
        )
    if is_text:
        return None
    said = "is empty" if not cells[row].strip() else f"is '{cells[row]}', no number"
    raise DataError(
        f"{line} {lines[row]}, column '{name}' {said}; the column holds numbers: fill it in, or leave the row out"
    )


def _number(cell: str) -> float | int | None:
    """The finite number that a cell holds; None for text."""
    text = cell.strip()
    if "_" in text:  # which Python reads over
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    if not np.isfinite(number):
        return None
    return int(text) if text.lstrip("+-").isdecimal() and len(text) <= _WHOLE else number


def _is_number(cell: object) -> bool:
    """Whether an object of a frame is a number."""
    return isinstance(cell, int | float | np.number | np.bool_)


def _partly(cells: Sequence[object], column: str, name: str) -> Array:
    """A column of objects as texts; of numbers and something else none."""
    if any(_is_number(cell) and cell == cell for cell in cells):
        row = next(row for row, cell in enumerate(cells) if not _is_number(cell))
        raise DataError(f"{name}: row {row}, column '{column}' is {cells[row]!r}, no number; the column holds numbers")
    return np.asarray([str(cell) for cell in cells])


def _require_present(array: Array, column: str, name: str) -> None:
    """Refuses a missing value."""
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        row = int(np.flatnonzero(~finite)[0])
        raise DataError(f"{name}: row {row}, column '{column}' is {array[row]}; fill it in, or leave the row out")
