from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from vsfix.graph_passes.errors import ModelError
from vsfix.trainers.data.torch_file import read_torch_file

EMPTY_DICT, ONE, PAIR, SINGLE, SET, STOP = b"}", b"K\x01", b"\x86", b"\x85", b"s", b"."
SAVED = {"state": {"w": torch.arange(6.0).reshape(2, 3)}, "rows": [(1, 2.5, "a"), (2, None, True)], "empty": ()}


def doubled(times: int) -> bytes:
    """A tuple of two ones, of two of these, and so on."""
    return ONE + b"".join(b"q" + bytes([step]) + b"h" + bytes([step]) + PAIR for step in range(times))


def key(made: bytes) -> bytes:
    """A pickle of a dict of which this is a key."""
    return b"\x80\x02" + EMPTY_DICT + made + ONE + SET + STOP


def in_a_list(times: int) -> bytes:
    """A list that holds a list twice, which holds a list twice, and so on."""
    made = b"]q\x00"
    for step in range(1, times):
        made += b"]q" + bytes([step]) + (b"h" + bytes([step - 1]) + b"a") * 2
    return b"\x80\x02" + made + STOP


def write(path: Path, pickled: bytes, *, packed: bool = False, old: bool = False, twice: bool = False) -> Path:
    """A file as torch writes it, with another pickle in it."""
    if old:
        buffer = io.BytesIO()
        torch.save({}, buffer, _use_new_zipfile_serialization=False)
        path.write_bytes(buffer.getvalue().replace(pickle.dumps({}, protocol=2), pickled))
        return path
    buffer = io.BytesIO()
    torch.save({}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            content = pickled if member.filename.endswith("data.pkl") else source.read(member)
            target.writestr(member.filename, content, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
            if twice and member.filename.endswith("data.pkl"):
                target.writestr(member.filename.upper(), content)
    return path


@pytest.mark.parametrize("new", [True, False])
def test_what_torch_saved_is_read(tmp_path, new):
    torch.save(SAVED, tmp_path / "m.pt", _use_new_zipfile_serialization=new)
    read = read_torch_file(tmp_path / "m.pt")
    torch.testing.assert_close(read["state"]["w"], SAVED["state"]["w"], rtol=0, atol=0)
    assert read["rows"] == SAVED["rows"]
    assert read["empty"] == ()


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_of_plain_values_is_read(tmp_path, old):
    assert read_torch_file(write(tmp_path / "m.pt", key(doubled(3)), old=old)) == {(((1, 1),) * 2,) * 2: 1}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (key(ONE + SINGLE * 200_000), "a tuple of over 10000 values"),  # as a key, it ends the process
        (key(doubled(60)), "a tuple of over 10000 values"),  # as a key, it takes years
        (key(b"(" + doubled(60) + b"t"), "a tuple of over 10000 values"),
        (in_a_list(60), "over 1000000 values"),
        (b"\x80\x02]q\x00h\x00a.", "in over 100 others"),
        (b"\x80\x02" + PAIR + STOP, "takes more than there is"),
    ],
)
def test_what_grows_without_end_is_refused_in_no_time(tmp_path, pickled, said, old):
    write(tmp_path / "m.pt", pickled, old=old)
    with pytest.raises(ModelError, match=said):
        read_torch_file(tmp_path / "m.pt")


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    write(tmp_path / "m.pt", b"\x80\x02X\x00\x00\x10\x00" + b"a" * (1 << 20) + STOP, packed=True)
    assert (tmp_path / "m.pt").stat().st_size < 10_000
    with pytest.raises(ModelError, match="unpacks to more than its size"):
        read_torch_file(tmp_path / "m.pt")


def test_an_archive_of_two_pickles_is_refused(tmp_path):
    with pytest.raises(ModelError, match="2 pickles instead of one"):
        read_torch_file(write(tmp_path / "m.pt", key(ONE), twice=True))


@pytest.mark.long
def test_the_deep_key_would_end_the_process(tmp_path):
    """Else the look beforehand could go."""
    path = write(tmp_path / "m.pt", key(ONE + SINGLE * 1_000_000))
    code = f"import torch; torch.load({str(path)!r}, weights_only=True)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode < 0
