from __future__ import annotations

import io
import re

import pytest
from rich.table import Table

from vsfix.pipeline.host.console import print_view, view_text
from vsfix.pipeline.host.table_text import PlainConsole, plain_lines, print_table_on

WIDTHS = (60, 80, 99, 100, 140)
REASON = "the output of the upstream Conv is read 2 times; its output goes to Relu"


def wide() -> Table:
    """A table of 116 letters in its box, of which 73 are those of a column that may be folded."""
    table = Table(
        title="Repair by match: the file says where the noise was, so the average over it is known",
        title_justify="left",
    )
    table.add_column("BatchNorm", overflow="fold")
    table.add_column("noise")
    table.add_column("after", justify="right")
    table.add_column("fold", overflow="fold")
    table.add_row("stage1.0.bn1", "none", "1.058", REASON)
    table.add_row("bn[2] :smile:", "", "10.5", "folded")
    return table


def narrow() -> Table:
    table = Table(title="A title that is longer than its table", title_justify="left")
    table.add_column("layer")
    table.add_column("before", justify="right")
    table.add_row("bn", "1.0")
    return table


def drawn(table: Table, width: int) -> list[str]:
    """The lines of a terminal of this width."""
    file = io.StringIO()
    print_table_on(PlainConsole(file=file, width=width, markup=False, emoji=False), table)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(width):
    for table in (wide(), narrow()):
        lines = drawn(table, width)
        assert max(map(len, lines)) <= width
        shown = " ".join(re.sub("[^\x20-\x7e]", " ", " ".join(lines)).split())
        for column in table.columns:
            assert all(word in shown for cell in column.cells for word in str(cell).split())


@pytest.mark.parametrize(("width", "boxed"), [(60, False), (80, False), (99, False), (100, True), (140, True)])
def test_below_a_hundred_letters_a_table_that_does_not_fit_is_stacked(width, boxed):
    assert any("┃" in line for line in drawn(wide(), width)) == boxed
    assert any("┃" in line for line in drawn(narrow(), width))


def test_a_stacked_row_is_a_block_with_its_headings():
    assert drawn(wide(), 60) == [
        "Repair by match: the file says where the noise was, so the",
        "average over it is known",
        "stage1.0.bn1",
        "  noise: none   after: 1.058",
        "  fold: the output of the upstream Conv is read 2 times; its",
        "    output goes to Relu",
        "bn[2] :smile:",
        "  noise: -      after: 10.5",
        "  fold: folded",
    ]


def test_a_table_of_numbers_alone_that_has_no_room_is_stacked_at_any_width():
    table = Table()
    for number in range(30):
        table.add_column(f"column {number}", no_wrap=True)
    table.add_row(*map(str, range(30)))
    lines = drawn(table, 140)
    assert "column 29: 29" in lines[-1]
    assert max(map(len, lines)) <= 140


def test_a_pipe_gets_a_line_for_each_row_and_columns_that_can_be_counted(capsys):
    print_view(["before", wide()])
    out = capsys.readouterr().out
    before, title, *rows = out.splitlines()
    assert (before, title) == ("before", wide().title)
    assert out.isascii()
    assert [re.split("  +", row) for row in rows] == [
        ["BatchNorm", "noise", "after", "fold"],
        ["stage1.0.bn1", "none", "1.058", REASON],
        ["bn[2] :smile:", "-", "10.5", "folded"],
    ]
    assert view_text(["before", wide()]) == out.rstrip("\n")


def test_a_cell_with_two_spaces_or_a_command_for_the_terminal_stays_one_column():
    table = Table()
    table.add_column("a")
    table.add_column("b")
    table.add_row("one  two\x1b[2J", "x" * 300)
    assert [re.split("  +", line) for line in plain_lines(table)][1] == [r"one two\x1b[2J", "x" * 300]


def test_a_table_without_headings_has_none_in_a_pipe():
    table = Table(show_header=False)
    table.add_column("what")
    table.add_column("found")
    table.add_row("layers", "5 in float16")
    assert list(plain_lines(table)) == ["layers  5 in float16"]
    assert drawn(table, 20) == ["layers", "  5 in float16"]
