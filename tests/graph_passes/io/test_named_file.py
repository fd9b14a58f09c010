from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.named_file import named_function, why_unreadable


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
