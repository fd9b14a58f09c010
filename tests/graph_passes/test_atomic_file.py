from __future__ import annotations

import pytest

from vsfix.graph_passes.atomic_file import atomic_path
from vsfix.graph_passes.errors import InputError, OutputExistsError


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


def test_a_failed_write_is_an_input_error_with_the_reason(tmp_path):
    with pytest.raises(InputError, match="No space left"), atomic_path(tmp_path / "out.bin", force=False):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
