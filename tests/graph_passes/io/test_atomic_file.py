from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from vsfix.graph_passes.errors import InputError, OutputExistsError
from vsfix.graph_passes.io.atomic_file import atomic_folder, atomic_path, atomic_paths, require_writable


def test_the_file_appears_whole_and_alone(tmp_path):
    target = tmp_path / "out.bin"
    with atomic_path(target, force=False) as temporary:
        temporary.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]


def test_after_an_error_the_old_file_stands_and_nothing_is_left(tmp_path):
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")

    def write_half():
        with atomic_path(target, force=True) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_half()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_existing_file_needs_force(tmp_path):
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(OutputExistsError, match="--force"), atomic_path(target, force=False):
        pytest.fail("must not be entered")
    with atomic_path(target, force=True) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("name", ["", "missing/out.bin"])
def test_a_folder_or_a_missing_folder_is_one_clear_error(tmp_path, name):
    with pytest.raises(InputError), atomic_path(tmp_path / name, force=True):
        pytest.fail("must not be entered")


def test_a_read_only_folder_is_an_error_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == tmp_path and mode == os.W_OK))
    with pytest.raises(InputError, match="nothing can be written into the folder"):
        require_writable(tmp_path / "out.bin", force=True)


def test_a_link_is_replaced_with_force_only_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "old").write_text("old")
    for name, target in (("link", "old"), ("nowhere", "gone")):
        link = tmp_path / name
        link.symlink_to(target)
        with pytest.raises(OutputExistsError, match="--force"), atomic_path(link, force=False):
            pytest.fail("must not be entered")
        with atomic_path(link, force=True) as temporary:
            temporary.write_text("new")
        assert not link.is_symlink()
        assert link.read_text() == "new"
    assert (tmp_path / "old").read_text() == "old"
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("hard_links", [True, False])
def test_what_another_process_writes_meanwhile_is_not_replaced_without_force(tmp_path, monkeypatch, hard_links):
    if not hard_links:  # as on exFAT
        monkeypatch.setattr(os, "link", raiser(OSError(1, "Operation not permitted")))

    def write(outputs):
        with outputs as temporary:
            (tmp_path / "m").write_text("theirs")
            for path in [temporary] if isinstance(temporary, Path) else temporary:
                path.write_text("ours")

    with pytest.raises(OutputExistsError, match="--force"):
        write(atomic_path(tmp_path / "m", force=False))
    assert contents(tmp_path) == {"m": "theirs"}
    (tmp_path / "m").unlink()
    with pytest.raises(OutputExistsError, match="--force"):
        write(atomic_paths([tmp_path / "m.data", tmp_path / "m"], force=False))
    assert contents(tmp_path) == {"m": "theirs"}


def test_a_file_is_new_where_there_are_no_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", raiser(OSError(1, "Operation not permitted")))
    with atomic_path(tmp_path / "m", force=False) as temporary:
        temporary.write_text("ours")
    assert contents(tmp_path) == {"m": "ours"}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("call", "code"), [("open", errno.EACCES), ("fsync", errno.EINVAL), ("fsync", errno.ENOSPC)])
def test_a_folder_that_can_not_be_synced_fails_nothing_but_a_disk_that_fails_does(tmp_path, monkeypatch, call, code):
    work = getattr(os, call)

    def refuse(file, *arguments, **options):
        if os.path.isdir(file) and (call == "fsync" or file == tmp_path):
            raise OSError(code, os.strerror(code))
        return work(file, *arguments, **options)

    monkeypatch.setattr(os, call, refuse)
    with (
        nullcontext() if code != errno.ENOSPC else pytest.raises(InputError, match="No space"),
        atomic_path(tmp_path / "m", force=True) as temporary,
    ):
        temporary.write_text("ours")
    assert contents(tmp_path) == {"m": "ours"}


def raiser(error):
    def function(*_, **__):
        raise error

    return function


def test_a_failed_write_is_an_input_error_with_the_reason(tmp_path):
    with pytest.raises(InputError, match="No space left"), atomic_path(tmp_path / "out.bin", force=False):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def write_pair(folder, text, *, force=True):
    with atomic_paths([folder / "m.data", folder / "m"], force=force) as temporary:
        for path in temporary:
            path.write_text(f"{text} {path.name}")
        assert not any(path.parent == folder for path in temporary)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if not path.name.endswith(".part")}


def test_files_that_belong_together_appear_together(tmp_path):
    write_pair(tmp_path, "new", force=False)
    assert contents(tmp_path) == {"m": "new m", "m.data": "new m.data"}
    with pytest.raises(OutputExistsError):
        write_pair(tmp_path, "newer", force=False)
    write_pair(tmp_path, "newer")
    assert contents(tmp_path) == {"m": "newer m", "m.data": "newer m.data"}


@pytest.mark.parametrize("step", range(5))
def test_the_name_never_stands_for_a_mixed_pair(tmp_path, monkeypatch, step):
    write_pair(tmp_path, "old")
    replace, calls, seen = Path.replace, [], []

    def watch(self, target):
        calls.append(target)
        if len(calls) == step:
            seen.append(contents(tmp_path))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watch)
    write_pair(tmp_path, "new")
    for files in seen:
        if "m" in files:
            assert files["m.data"].split()[0] == files["m"].split()[0]


def write_folder(tmp_path, text, force=True):
    with atomic_folder(tmp_path / "repo" / "m", force=force, scratch=tmp_path) as new:
        (new / "1").mkdir()
        for name in ("a", "1/b"):
            (new / name).write_text(f"{text} {name}")


def folder_contents(tmp_path):
    return {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}


OLD = {"repo/m/a": "old a", "repo/m/1/b": "old 1/b"}


def test_a_folder_appears_whole_and_is_replaced_with_force_only(tmp_path):
    write_folder(tmp_path, "old", force=False)
    assert folder_contents(tmp_path) == OLD
    (tmp_path / "repo" / "m" / "2").mkdir()
    with pytest.raises(OutputExistsError):
        write_folder(tmp_path, "new", force=False)
    write_folder(tmp_path, "new")
    assert folder_contents(tmp_path) == {name: text.replace("old", "new") for name, text in OLD.items()}
    assert not (tmp_path / "repo" / "m" / "2").exists()


def test_an_error_in_the_middle_leaves_no_folder_and_the_old_one(tmp_path):
    def fail():
        with atomic_folder(tmp_path / "repo" / "m", force=True, scratch=tmp_path) as new:
            (new / "a").write_text("half")
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert list(tmp_path.iterdir()) == []
    write_folder(tmp_path, "old")
    with pytest.raises(ValueError):
        fail()
    assert folder_contents(tmp_path) == OLD


@pytest.mark.parametrize(("exists", "step"), [(True, 0), (True, 1), (False, 0)])
def test_a_failure_of_a_rename_leaves_the_old_output(tmp_path, monkeypatch, exists, step):
    if exists:
        write_folder(tmp_path, "old")
    rename, calls = Path.rename, []

    def fail_once(self, target):
        calls.append(target)
        if len(calls) == step + 1:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(InputError, match="No space left"):
        write_folder(tmp_path, "new")
    assert folder_contents(tmp_path) == (OLD if exists else {})
    assert [path.name for path in tmp_path.iterdir()] == (["repo"] if exists else [])


def test_a_file_is_no_place_for_a_folder(tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "m").write_text("mine")
    with pytest.raises(InputError, match="is a file; name a folder"):
        write_folder(tmp_path, "new")


@pytest.mark.parametrize("name", ["pipe", "link", "out", "/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_nothing_takes_the_place_of_a_pipe_or_a_device(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "out").symlink_to("/proc/self/fd/1")
    before = {path: path.lstat() for path in tmp_path.iterdir()}
    for force in (False, True):
        with pytest.raises(InputError, match=f"{name}: is a pipe"), atomic_path(tmp_path / name, force=force):
            pytest.fail("must not be entered")
    assert {path: path.lstat() for path in tmp_path.iterdir()} == before


def test_a_file_that_is_replaced_stays_closed_to_others(tmp_path):
    def mode(name):
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    (tmp_path / "secret").touch(mode=0o400)
    with atomic_path(tmp_path / "secret", force=True) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600  # while it is written
        temporary.write_bytes(b"new")
    assert mode("secret") == 0o400
    (tmp_path / "link").symlink_to("secret")
    with atomic_path(tmp_path / "link", force=True) as temporary:
        temporary.write_bytes(b"new")
    with atomic_path(tmp_path / "fresh", force=True) as temporary:
        temporary.write_bytes(b"new")
    (tmp_path / "m").touch(mode=0o640)
    write_pair(tmp_path, "new")
    assert mode("m") == 0o640
    assert mode("m.data") == mode("link") == mode("fresh")


def test_a_read_only_file_is_replaced_by_whoever_may_write_its_folder(tmp_path, monkeypatch):
    (tmp_path / "m").touch(mode=0o444)
    writable = []
    monkeypatch.setattr(os, "fsync", lambda file: writable.append(bool(os.fstat(file).st_mode & stat.S_IWUSR)))
    with atomic_path(tmp_path / "m", force=True) as temporary:
        temporary.write_bytes(b"new")
    write_pair(tmp_path, "newer")
    assert writable
    assert all(writable)  # when it is opened to be synced; root may open what is not


@pytest.mark.parametrize("name", ["a/x", "x" * 300])
def test_a_circle_of_links_and_a_name_past_the_longest_are_one_clear_error(tmp_path, name):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match=re.escape(name)), atomic_path(tmp_path / name, force=False):
        pytest.fail("must not be entered")
