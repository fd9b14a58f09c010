"""A table as the page draws it: headings and cells as text, each cell with what it is sorted by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
ABSENT = "–"
FOLDED_FROM = 21  # rows from which on a table starts folded
_SENTENCE = 28  # letters


@dataclass(frozen=True)
class Column(Generic[T]):
    """How one column reads a row.

    Attributes:
        heading: what stands above it.
        value: what it is sorted by: a number, or a text; None where the row has none.
        write: how a number is written.
        text: what stands in the cell instead, where it is more than the value.
        always: it stays where no row has a value.
        note: a smaller line below it; not given where there is none.
    """

    heading: str
    value: Callable[[T], float | str | None]
    write: Callable[[float], str] | None = None
    text: Callable[[T], str] | None = None
    always: bool = False
    note: Callable[[T], str] | None = None


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what stands there.
        number: what it is sorted by, as JavaScript reads it; None where it is sorted by its text.
        absent: whether the row has no value; such a cell is sorted last.
        note: a smaller line below the text.
    """

    text: str
    number: str | None = None
    absent: bool = False
    note: str = ""


@dataclass(frozen=True)
class Heading:
    """The head of a column.

    Attributes:
        text: what stands there.
        kind: `number`, `word`, or `sentence` where a cell needs room for several words.
    """

    text: str
    kind: str


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        headings: one for each column.
        rows: as many cells each.
        folded: whether it starts folded.
    """

    headings: tuple[Heading, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool


def make_table(columns: Sequence[Column[T]], items: Sequence[T]) -> Table:
    """Reads the rows; a column in which no row has a value is left out."""
    kept = [column for column in columns if column.always or any(_is_there(column.value(item)) for item in items)]
    headings = tuple(Heading(column.heading, _kind(column, items)) for column in kept)
    rows = tuple(tuple(_cell(column, item) for column in kept) for item in items)
    return Table(headings, rows, len(items) >= FOLDED_FROM)


def _kind(column: Column[T], items: Sequence[T]) -> str:
    """Of the values that there are in a column."""
    values = [column.value(item) for item in items]
    if any(isinstance(value, float | int) for value in values):
        return "number"
    return "sentence" if any(isinstance(value, str) and len(value) >= _SENTENCE for value in values) else "word"


def _cell(column: Column[T], item: T) -> Cell:
    """One cell."""
    value = column.value(item)
    if value is None or not _is_there(value):
        return Cell(ABSENT, absent=True)
    note = column.note(item) if column.note else ""
    if isinstance(value, str):
        return Cell(column.text(item) if column.text else value, note=note)
    written = column.write(value) if column.write else str(value)
    return Cell(column.text(item) if column.text else written, _number(value), note=note)


def _is_there(value: float | str | None) -> bool:
    """Whether a row has a value: NaN and the empty text are none."""
    return value is not None and value != "" and value == value


def _number(value: float) -> str:
    """A number as JavaScript reads it."""
    return repr(value) if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"
