"""Reads the idx files in which MNIST and its relatives are published, plain or gzipped.

    2 bytes of 0 | type code (0x08: unsigned byte) | rank d | d sizes, 4 bytes each, big endian | the values, row major

The sizes in the header are a claim. Memory is taken only as bytes arrive, so a false claim costs nothing.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import DataError, InputError

_UNSIGNED_BYTE = 0x08
_CHUNK = 1 << 20
_LARGE = 1 << 28  # bytes that are read whatever they are packed to
_MOST_GROWTH = 100


class _Stream(Protocol):
    """An opened file, gzipped or not."""

    def read(self, size: int, /) -> bytes: ...


def find_idx_file(folder: Path, name: str) -> Path | None:
    """The file `name` or `name.gz` in `folder`, or None where neither is there."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def read_idx_file(path: Path, *, rank: int) -> npt.NDArray[np.uint8]:
    """Reads a file of unsigned bytes.

    Args:
        path: the file; gzipped where its name ends in `.gz`.
        rank: the number of dimensions that the file must have, 3 for images, 1 for labels.

    Returns:
        uint8, in the shape that the header names.

    Raises:
        InputError: the file can't be opened.
        DataError: no idx file of this type and rank, or one that is damaged, too short or too long.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            shape = _read_shape(stream, path, rank)
            _refuse_bomb(path, math.prod(shape))
            values = _read_values(stream, path, math.prod(shape))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the gzip stream is damaged ({error}); fetch the file again") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from None
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _refuse_bomb(path: Path, expected: int) -> None:
    """Refuses a file that takes far more memory than room on the disk; images shrink to a tenth at most."""
    if expected > _LARGE and expected > _MOST_GROWTH * path.stat().st_size:
        raise DataError(f"{path}: would unpack to {expected >> 20} MiB, over {_MOST_GROWTH} times its size")


def _read_shape(stream: _Stream, path: Path, rank: int) -> tuple[int, ...]:
    """Reads and checks the header."""
    header = stream.read(4)
    if len(header) < 4 or header[:2] != b"\0\0":
        raise DataError(f"{path}: no idx file (it must begin with two zero bytes)")
    if header[2] != _UNSIGNED_BYTE:
        raise DataError(f"{path}: idx type 0x{header[2]:02x}; only unsigned bytes (0x08) are read")
    if header[3] != rank:
        raise DataError(f"{path}: an idx file of rank {header[3]}, but rank {rank} is needed here")
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise DataError(f"{path}: ends inside its header; fetch the file again")
    shape = struct.unpack(f">{rank}I", sizes)
    if 0 in shape:
        raise DataError(f"{path}: the header names no values ({'x'.join(map(str, shape))})")
    return shape


def _read_values(stream: _Stream, path: Path, expected: int) -> bytearray:
    """Reads exactly `expected` bytes up to the end of the file, chunk by chunk."""
    values = bytearray()
    # One byte more than expected, to see that the file ends here, and for gzip to check its sum.
    while len(values) <= expected and (chunk := stream.read(min(_CHUNK, expected + 1 - len(values)))):
        values += chunk
    if len(values) != expected:
        found = "more" if len(values) > expected else f"only {len(values)}"
        raise DataError(f"{path}: the header names {expected} values, the file holds {found}; fetch the file again")
    return values
