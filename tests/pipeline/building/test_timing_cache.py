from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.building.timing_cache import default_timing_cache, read_timing_cache, write_timing_cache


def test_the_default_is_in_the_cache_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_timing_cache("10.1") == tmp_path / "vsfix" / "tensorrt-10.1.timing"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_timing_cache("10.1") == Path.home() / ".cache" / "vsfix" / "tensorrt-10.1.timing"


def test_timings_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "t.timing"
    assert read_timing_cache(path) == b""
    write_timing_cache(path, b"12")
    assert read_timing_cache(path) == b"12"


def test_a_folder_is_no_cache(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        read_timing_cache(tmp_path)


def test_timings_that_can_not_be_kept_are_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        write_timing_cache(tmp_path / "file" / "t.timing", b"1")
    assert "is not kept" in caplog.text


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.timing")
    with pytest.raises(InputError, match="is a pipe"):
        read_timing_cache(tmp_path / "t.timing")
