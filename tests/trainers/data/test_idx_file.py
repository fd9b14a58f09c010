from __future__ import annotations

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.trainers.data.idx_file import find_idx_file, read_idx_file

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 4), dtype=np.uint8)


def idx(values: np.ndarray, kind: int = 0x08) -> bytes:
    return bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_is_read_plain_and_gzipped(tmp_path, suffix):
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(idx(IMAGES)) if suffix else idx(IMAGES))
    np.testing.assert_array_equal(read_idx_file(path, rank=3), IMAGES)
    assert find_idx_file(tmp_path, "images") == path


def test_a_file_that_is_not_there_is_not_found(tmp_path):
    assert find_idx_file(tmp_path, "images") is None
    with pytest.raises(InputError, match=r"images: can't be read \(No such file"):
        read_idx_file(tmp_path / "images", rank=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no idx file"),
        (b"\x89PNG" + bytes(50), "no idx file"),
        (idx(IMAGES, kind=0x0D), "type 0x0d"),
        (idx(IMAGES.reshape(-1)), "rank 1, but rank 3"),
        (idx(IMAGES)[:10], "inside its header"),
        (idx(IMAGES)[:-1], "holds only 59"),
        (idx(IMAGES) + b"x", "holds more"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_another_or_damaged_file_is_refused_by_name(tmp_path, content, message, suffix):
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DataError, match=f"{path.name}.*{message}"):
        read_idx_file(path, rank=3)


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b[:30] + bytes(8) + b[38:], lambda b: b"no gzip" + b])
def test_a_damaged_gzip_stream_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "images.gz"
    path.write_bytes(damage(gzip.compress(idx(IMAGES))))
    with pytest.raises(DataError, match=r"images\.gz: the gzip stream is damaged"):
        read_idx_file(path, rank=3)


def test_a_wrong_check_sum_is_noticed(tmp_path):
    packed = bytearray(gzip.compress(idx(IMAGES)))
    packed[-8] ^= 1
    path = tmp_path / "images.gz"
    path.write_bytes(packed)
    with pytest.raises(DataError, match="damaged"):
        read_idx_file(path, rank=3)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_header_that_promises_too_much_takes_no_memory(tmp_path, suffix):
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(100)
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="would unpack to"):
            read_idx_file(path, rank=3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_header_that_names_no_values_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"\0\0\x08\x03" + bytes(4) + b"\xff" * 8)
    with pytest.raises(DataError, match="no values"):
        read_idx_file(tmp_path / "a", rank=3)


def test_a_gzipped_file_of_zeros_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("vsfix.trainers.data.idx_file._LARGE", 1000)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01" + (100_000).to_bytes(4, "big") + bytes(100_000)))
    with pytest.raises(DataError, match="over 100 times its size"):
        read_idx_file(path, rank=1)
