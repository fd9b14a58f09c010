"""A table as text, by the room that a line has.

a pipe            a line for each row, two spaces or more between columns, nothing cut and nothing folded
a terminal        a box, where it fits; from 100 letters on long cells are folded to make it fit
too narrow        the rows as blocks: the first cell, and under it what the others hold, each with its heading
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .terminal_text import printable

STACKED_BELOW = 100  # letters of a line; with fewer no cell is folded
NARROWEST = 16  # letters that a folded cell keeps
_ABSENT = "-"
_GAP = 3  # letters between the cells of a block


class PlainConsole(Console):
    """A console that takes the text of a cell for text and nothing else."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as it is, without emoji codes or markup, unlike `Console.render_str`."""
        return super().render_str(printable(text), **options)


@dataclass(frozen=True)
class _Column:
    """One column: its heading, its cells, and what rich knows of it."""

    heading: str
    cells: tuple[str, ...]
    is_right: bool
    folds: bool

    @property
    def width(self) -> int:
        """The letters of its longest cell."""
        return max(map(len, self.cells), default=0)

    def padded(self, cell: str, width: int) -> str:
        """A cell on so many letters."""
        return cell.rjust(width) if self.is_right else cell.ljust(width)


def print_table_on(console: Console, table: Table) -> None:
    """Prints a table on a terminal, in a box or in blocks, as its width has room."""
    if fits(table, console.width):
        shown = copy(table)
        shown.title = None  # rich would break it to the width of the box
        if table.title:
            console.print(Text(printable(str(table.title))))
        console.print(shown)
        return
    for line in stacked_lines(table, console.width):
        console.print(Text(line), soft_wrap=True)


def fits(table: Table, width: int) -> bool:
    """Whether so many letters have room for the box."""
    measured = PlainConsole(width=10_000, file=io.StringIO(), markup=False, emoji=False)
    natural = measured.measure(table).maximum
    if width < STACKED_BELOW:
        return natural <= width
    return natural - sum(max(0, column.width - NARROWEST) for column in _columns(table) if column.folds) <= width


def plain_lines(table: Table) -> Iterator[str]:
    """The title, the headings, and a line for each row, in which a cell that is empty is a dash."""
    if table.title:
        yield printable(str(table.title))
    columns = _columns(table)
    widths = [max(len(column.heading), column.width, 1) for column in columns]
    lines = list(zip(*(column.cells for column in columns), strict=True))
    for cells in [[column.heading for column in columns], *lines] if table.show_header else lines:
        padded = (
            column.padded(cell or _ABSENT, width) for column, cell, width in zip(columns, cells, widths, strict=True)
        )
        yield "  ".join(padded).rstrip()


def stacked_lines(table: Table, width: int) -> Iterator[str]:
    """The title, and a block for each row, in lines of so many letters."""
    if table.title:
        yield from _wrapped(printable(str(table.title)), width, "")
    first, *others = _columns(table)
    lines = _packed(others, width - 2)
    for row, name in enumerate(first.cells):
        yield from _wrapped(name or _ABSENT, width, "  ")
        for line in lines:
            if len(line) == 1 and line[0].cells[row] in ("", _ABSENT):
                continue  # a line of its own for nothing
            parts = [f"{_label(column)}{column.cells[row] or _ABSENT}".ljust(_room(column)) for column in line]
            text = (" " * _GAP).join(parts).rstrip()
            yield from _wrapped(f"  {text}", width, "    ") if len(line) == 1 else [f"  {text}"]


def _packed(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """The columns in lines of so many letters, each as wide as its longest cell."""
    lines: list[list[_Column]] = []
    left = 0
    for column in columns:
        if lines and _GAP + _room(column) <= left:
            left -= _GAP + _room(column)
            lines[-1].append(column)
        else:
            lines.append([column])
            left = width - _room(column)
    return lines


def _label(column: _Column) -> str:
    return f"{column.heading}: " if column.heading else ""


def _room(column: _Column) -> int:
    """The letters of a heading with its longest cell."""
    return len(_label(column)) + max(column.width, 1)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    """A text in lines that break between words, all but the first set in."""
    start = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(
        text.lstrip(), max(width, 8), initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
    ) or [""]


def _columns(table: Table) -> list[_Column]:
    """The columns as text in one line each."""
    return [
        _Column(
            _text(column.header) if table.show_header else "",
            tuple(_text(cell) for cell in column.cells),
            column.justify == "right",
            column.overflow == "fold" and not column.no_wrap,
        )
        for column in table.columns
    ]


def _text(cell: object) -> str:
    """A cell or a heading; two spaces are what stands between columns."""
    return " ".join(printable(str(cell)).split())
