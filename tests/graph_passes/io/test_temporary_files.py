from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from vsfix.graph_passes.io.atomic_file import atomic_folder, atomic_path, atomic_paths
from vsfix.graph_passes.io.temporary_files import temporary_file

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="the locks are those of POSIX")

WRITE = """
import os, signal, sys
from pathlib import Path
from vsfix.graph_passes.io import atomic_file

path, step, kind, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
calls = 0

def stopped_at_a_step(work):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == step and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        result = work(*arguments, **options)
        if calls == step and how == "interrupted":
            raise KeyboardInterrupt
        return result
    return call

for name in ("fsync", "replace", "rename", "open", "mkdir", "unlink"):
    setattr(os, name, stopped_at_a_step(getattr(os, name)))
if kind == "file":
    with atomic_file.atomic_path(path, force=True) as temporary:
        temporary.write_text("new")
elif kind == "pair":
    with atomic_file.atomic_paths([path.with_name("out.data"), path], force=True) as temporary:
        for file in temporary:
            file.write_text("new")
else:
    with atomic_file.atomic_folder(path, force=True, scratch=path.parent) as folder:
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")
"""


def temporary_names(folder):
    return [path.name for path in folder.iterdir() if ".part" in path.name]


@needs_locks
def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_the_same_output(tmp_path):
    left = tmp_path / ".net.onnx.0123abcd.part.onnx"
    left.write_text("half")
    with atomic_path(tmp_path / "other.onnx", force=False) as temporary:
        temporary.write_text("other")
    assert left.exists()
    with atomic_path(tmp_path / "net.onnx", force=False) as temporary:
        temporary.write_text("whole")
        assert not left.exists()
    assert temporary_names(tmp_path) == []


def test_what_a_living_process_fills_stays(tmp_path):
    target = tmp_path / "net.onnx"
    with atomic_path(target, force=True) as first:
        first.write_text("first")
        with atomic_path(target, force=True) as second:
            second.write_text("second")
            assert first.read_text() == "first"
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert temporary_names(tmp_path) == []


@pytest.mark.parametrize(
    "name", [".net.onnx.part", ".net.onnx.backup.part.onnx", "net.onnx.0123abcd.part", ".netXonnx.0123abcd.part.onnx"]
)
def test_a_file_that_only_looks_alike_is_not_touched(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with atomic_path(tmp_path / "net.onnx", force=False) as temporary:
        temporary.write_text("whole")
    assert (tmp_path / name).read_text() == "mine"


@needs_locks
def test_a_link_under_such_a_name_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    (tmp_path / ".net.onnx.0123abcd.part").symlink_to(tmp_path / "mine")
    with atomic_path(tmp_path / "net.onnx", force=False) as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "mine"


def read(path):
    """The content of an output: its text, or that of every file in it, or None."""
    if path.is_dir():
        return "".join(sorted(file.read_text() for file in path.iterdir()))
    return path.read_text() if path.exists() else None


def prepare(kind, folder):
    """The old output."""
    path = folder / "out"
    if kind == "folder":
        path.mkdir()
        (path / "a").write_text("old")
        return path, ("old", "newnew")
    path.write_text("old")
    if kind == "pair":
        path.with_name("out.data").write_text("old")
    return path, ("old", "new")


def write(kind, path, step, how):
    """Writes an output in a process of its own that is stopped at one of its calls."""
    return subprocess.run(
        [sys.executable, "-c", WRITE, str(path), str(step), kind, how], check=False, stderr=subprocess.DEVNULL
    ).returncode


@needs_locks
@pytest.mark.parametrize("kind", ["file", "pair", "folder"])
def test_killed_at_any_call_an_output_is_the_old_one_or_the_new_one_or_none(kind, tmp_path):
    absent, step = 0, 0
    while True:
        step += 1
        folder = tmp_path / str(step)
        folder.mkdir()
        path, whole = prepare(kind, folder)
        returned = write(kind, path, step, "killed")
        if returned == 0:
            break
        assert returned == -signal.SIGKILL
        seen = read(path)
        absent += seen is None
        assert seen in (*whole, None)
        if kind == "pair" and seen is not None:
            assert read(path.with_name("out.data")) == seen  # never a mixture
        assert kind != "file" or seen is not None
        interrupt_next_run(kind, path)
        assert read(path) == seen
        assert temporary_names(folder) == []
    assert step > 5
    assert absent <= 4  # two renames of a pair, one of a folder, and what stands between


@needs_locks
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_interrupted_after_any_call_an_output_is_the_old_or_the_new_one_at_once(kind, tmp_path):
    step = 0
    while True:
        step += 1
        folder = tmp_path / str(step)
        folder.mkdir()
        path, whole = prepare(kind, folder)
        if write(kind, path, step, "interrupted") == 0:
            break
        assert read(path) in whole
    assert step > 5


def interrupt_next_run(kind, path):
    """A run that fails for a reason of its own; it clears away what was left, and changes nothing."""
    outputs = {
        "file": lambda: atomic_path(path, force=True),
        "pair": lambda: atomic_paths([path.with_name("out.data"), path], force=True),
        "folder": lambda: atomic_folder(path, force=True, scratch=path.parent),
    }
    with pytest.raises(RuntimeError, match="of its own"), outputs[kind]():
        raise RuntimeError("of its own")


def test_eight_processes_write_one_output_and_it_is_one_of_theirs(tmp_path):
    target = tmp_path / "net.onnx"
    code = (
        "import sys; from pathlib import Path; from vsfix.graph_passes.io.atomic_file import atomic_path\n"
        "for _ in range(30):\n"
        "    with atomic_path(Path(sys.argv[1]), force=True) as temporary:\n"
        "        temporary.write_text(sys.argv[2] * 5000)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(target), letter]) for letter in "abcdefgh"]
    while any(writer.poll() is None for writer in writers):
        if target.exists():
            text = target.read_text()
            assert len(text) == 5000
            assert len(set(text)) == 1
    assert [writer.returncode for writer in writers] == [0] * 8
    assert os.listdir(tmp_path) == ["net.onnx"]


@needs_locks
@pytest.mark.parametrize("name", ["n" * 250 + ".onnx", "ü" * 127, "x." + "s" * 253])
def test_a_name_as_long_as_names_can_be_is_written_and_its_left_ones_are_known_again(name, tmp_path):
    with temporary_file(tmp_path / name) as temporary:
        left = temporary.name
        assert temporary.suffix == (".onnx" if name.endswith(".onnx") else ".part")
    (tmp_path / left).write_text("left")
    with atomic_path(tmp_path / (name[1:] + "n"), force=False) as temporary:  # as long, and another
        temporary.write_text("other")
    assert (tmp_path / left).exists()
    with atomic_path(tmp_path / name, force=False) as temporary:
        temporary.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"
    assert temporary_names(tmp_path) == []


def test_a_pipe_under_such_a_name_holds_no_process_up_and_the_rest_goes(tmp_path):
    os.mkfifo(tmp_path / ".a.onnx.00000000.part.onnx")
    (tmp_path / ".a.onnx.11111111.part.onnx").write_text("left")
    with temporary_file(tmp_path / "a.onnx"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".a.onnx.00000000.part.onnx"]
