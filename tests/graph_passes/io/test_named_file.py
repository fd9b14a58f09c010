from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.named_file import (
    call_named_function,
    current_folder_importable,
    named_function,
    names_function,
    why_unreadable,
)


def test_a_file_that_is_small_enough_is_read(tmp_path):
    (tmp_path / "f").write_bytes(bytes(8))
    (tmp_path / "link").symlink_to(tmp_path / "f")
    assert why_unreadable(tmp_path / "f") is None
    assert why_unreadable(tmp_path / "f", 8) is None
    assert why_unreadable(tmp_path / "link", 8) is None


@pytest.mark.parametrize("path", ["/dev/zero", "pipe"])
def test_what_never_ends_is_not_read(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe, a socket or a device" in str(why_unreadable(tmp_path / path))


def test_each_other_reason_is_in_the_message(tmp_path):
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 3 << 30)
    assert why_unreadable(tmp_path / "gone") == "no such file"
    assert why_unreadable(tmp_path / "sparse" / "in-a-file") == "no such file"
    assert why_unreadable(tmp_path) == "is a folder; name a file"
    assert why_unreadable(tmp_path / ("n" * 300)) == "can't be read (File name too long)"
    assert why_unreadable(tmp_path / "sparse", 1 << 31) == (
        "is of 3072 MiB, and no file of this kind is larger than 2048 MiB"
    )
    assert why_unreadable(Path(tmp_path / "sparse")) is None


def test_a_function_of_a_module_in_the_current_folder_is_found_and_the_path_is_as_before(tmp_path, monkeypatch):
    (tmp_path / "named_here.py").write_text("class Made:\n    @staticmethod\n    def three():\n        return 3\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert named_function("named_here:Made.three")() == 3
    with pytest.raises(InputError, match=r"named_here:Made\.four: can't be imported .AttributeError"):
        named_function("named_here:Made.four")
    assert sys.path == before


CODE = """
class Makers:
    @staticmethod
    def seven():
        import found_later
        return 7

def broken():
    raise RuntimeError("no such disk\\nsecond line")

number = 7
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "code_of_mine.py").write_text(CODE)
    (tmp_path / "found_later.py").write_text("")
    yield tmp_path
    for name in ("code_of_mine", "found_later"):
        sys.modules.pop(name, None)


def call(name):
    return call_named_function(name)


def test_a_function_of_the_current_folder_is_called_and_the_path_stays_as_it_was(mine):
    before = list(sys.path)
    assert call("code_of_mine:Makers.seven") == 7
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("code_of_mine:gone", "can't be imported .AttributeError.*write package.module:function"),
        ("no_such_module_of_mine:gone", "can't be imported .ModuleNotFoundError"),
        ("code_of_mine:number", "is a int; name a function"),
        ("code_of_mine:broken", "fails when called without arguments .RuntimeError: no such disk.$"),
    ],
)
def test_what_can_not_be_called_is_one_line_with_the_error_behind_it(mine, name, words):
    with pytest.raises(InputError, match=words):
        call(name)
    assert str(mine) not in sys.path


def test_an_import_alone_calls_nothing(mine):
    assert callable(named_function("code_of_mine:broken"))


def test_the_current_folder_is_taken_off_again_after_an_error(mine):
    before = list(sys.path)
    with pytest.raises(ZeroDivisionError), current_folder_importable():
        sys.path.insert(0, str(1 // 0))
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("module:function", True),
        ("package.module:Class.method", True),
        ("fashion-mnist:DIR", False),
        ("rows.csv:label=price", False),
        ("module:", False),
        (":function", False),
        ("module", False),
        ("folder/module:function", False),
        ("1module:function", False),
    ],
)
def test_a_text_is_told_from_files_and_data_sets(text, expected):
    assert names_function(text) is expected
