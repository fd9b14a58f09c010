"""CIFAR-10 and CIFAR-100, in the binary and in the python version, as their author publishes them.

    binary    one record for each image: label (CIFAR-100: coarse label, label), then 3,072 bytes, red, green, blue
    python    pickles of {b"data": uint8 (N, 3072), b"labels" or b"fine_labels": list}

A pickle calls what it names. The Unpickler here admits the names that a pickled array needs, and puts inert records in
their place, since numpy trusts the state of a pickled dtype.

Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.io.named_file import why_unreadable

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
_PIXELS = 3072
_LARGEST = 1 << 29  # bytes; the largest file published has a third of it
_MOST_TUPLES = 20_000  # the hash of tuples in tuples takes the C stack
_NAMES_OF_ARRAYS = frozenset(
    ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype")
)
_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class _Version:
    """One form in which a set is published."""

    folder: str
    parts: Mapping[str, Sequence[str]]
    names: str


_BATCHES = range(1, 6)
_BINARY: Mapping[str, _Version] = {
    "cifar10": _Version(
        "cifar-10-batches-bin",
        {"train": [f"data_batch_{i}.bin" for i in _BATCHES], "test": ["test_batch.bin"]},
        "batches.meta.txt",
    ),
    "cifar100": _Version("cifar-100-binary", {"train": ["train.bin"], "test": ["test.bin"]}, "fine_label_names.txt"),
}
_PYTHON: Mapping[str, _Version] = {
    "cifar10": _Version(
        "cifar-10-batches-py",
        {"train": [f"data_batch_{i}" for i in _BATCHES], "test": ["test_batch"]},
        "batches.meta",
    ),
    "cifar100": _Version("cifar-100-python", {"train": ["train"], "test": ["test"]}, "meta"),
}


def read_cifar(name: str, folder: Path, split: str) -> tuple[Images, Labels, tuple[str, ...]]:
    """Reads one part of a set.

    Args:
        name: "cifar10" or "cifar100".
        folder: where the files are, or the folder that the archive was unpacked into.
        split: "train" or "test".

    Returns:
        (images of shape (N, 32, 32, 3), labels of shape (N,), the names of the classes).

    Raises:
        InputError: a file is missing.
        DataError: a damaged file.
    """
    for version, read, names in (
        (_BINARY[name], _read_binary, _read_names),
        (_PYTHON[name], _read_python, _read_python_names),
    ):
        for place in (folder, folder / version.folder):
            if (place / version.parts[split][0]).is_file():
                missing = [file for file in (*version.parts[split], version.names) if not (place / file).is_file()]
                if missing:
                    raise InputError(f"{name}: {place} holds no {' and no '.join(missing)}; unpack the archive again")
                parts = [read(place / file, name) for file in version.parts[split]]
                images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
                return np.ascontiguousarray(images), labels, names(place / version.names, name)
    archive = _BINARY[name].folder.replace("-batches-bin", "-binary")
    raise InputError(f"{name}: no files in {folder}; download {archive}.tar.gz from {_PAGE} and unpack it there")


def _read_binary(path: Path, name: str) -> tuple[Images, Labels]:
    labels = 1 if name == "cifar10" else 2
    if (reason := why_unreadable(path, _LARGEST)) is not None:
        raise DataError(f"{path}: {reason}")
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    if not content.size or content.size % (labels + _PIXELS):
        raise DataError(f"{path}: {content.size} bytes are no whole number of records of {labels + _PIXELS}")
    records = content.reshape(-1, labels + _PIXELS)
    return _images(records[:, labels:]), records[:, labels - 1].astype(np.int64)


def _read_python(path: Path, name: str) -> tuple[Images, Labels]:
    content = _unpickled(path)
    data, labels = content.get("data"), content.get("labels" if name == "cifar10" else "fine_labels")
    rows = data.pixels() if isinstance(data, _PickledArray) else None
    if rows is None:
        raise DataError(f"{path}: holds no array 'data' of uint8 in the shape (N, {_PIXELS})")
    if not isinstance(labels, list) or len(labels) != len(rows) or not all(map(_is_label, labels)):
        raise DataError(f"{path}: holds no list of {len(rows)} labels")
    return _images(rows), np.array(labels, dtype=np.int64)


def _is_label(label: object) -> bool:
    return type(label) is int and 0 <= label < 100


def _images(rows: Images) -> Images:
    """(N, 3072), colour by colour, as (N, 32, 32, 3)."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _read_names(path: Path, name: str) -> tuple[str, ...]:
    if (reason := why_unreadable(path, _LARGEST)) is not None:
        raise DataError(f"{path}: {reason}")
    return _checked(path, name, path.read_text(encoding="utf-8", errors="replace").split("\n"))


def _read_python_names(path: Path, name: str) -> tuple[str, ...]:
    names = _unpickled(path).get("label_names" if name == "cifar10" else "fine_label_names")
    if not isinstance(names, list) or not all(isinstance(entry, bytes | str) for entry in names):
        raise DataError(f"{path}: holds no names of the classes")
    return _checked(path, name, [_text(entry) for entry in names])


def _checked(path: Path, name: str, lines: Sequence[str]) -> tuple[str, ...]:
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != (10 if name == "cifar10" else 100):
        raise DataError(f"{path}: holds {len(names)} names of classes")
    return names


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


def _unpickled(path: Path) -> dict[str, Any]:
    """The dict in a pickle, by its keys that are texts."""
    if (reason := why_unreadable(path, _LARGEST)) is not None:
        raise DataError(f"{path}: {reason}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    try:
        _require_modest(content)
        found = _Unpickler(content).load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # pickle raises what it likes
        raise DataError(f"{path}: the pickle is damaged ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds no dict")
    return {_text(key): value for key, value in found.items() if isinstance(key, bytes | str)}


def _require_modest(content: bytes) -> None:
    """Refuses a pickle that makes the Unpickler take far more memory than the file has, or the whole stack."""
    tuples = 0
    for opcode, argument, _ in pickletools.genops(content):
        tuples += opcode.name.startswith("TUPLE")
        if tuples > _MOST_TUPLES or (opcode.name.endswith("PUT") and int(argument or 0) > len(content)):
            raise DataError("the pickle is not one of CIFAR's")


class _Unpickler(pickle.Unpickler):
    """Builds plain values and `_PickledArray`s; Python 2's strings are bytes."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.left_to_encode = len(content)

    def find_class(self, module: str, name: str) -> Any:
        """The inert replacement of a name that pickled arrays and bytes need; all other names are refused."""
        if f"{module}.{name}" in _NAMES_OF_ARRAYS:
            return _PickledArray
        if f"{module}.{name}" == "_codecs.encode":
            return self.encode
        raise DataError(f"the pickle names {f'{module}.{name}'[:80]!r}, which arrays don't need; not executed")

    def encode(self, text: str, encoding: str) -> bytes:
        """The bytes that a text stands for; together they are no more than the file."""
        self.left_to_encode -= len(text)
        if self.left_to_encode < 0 or encoding not in ("latin1", "latin-1"):
            raise DataError("the pickle is not one of CIFAR's")
        return text.encode("latin-1")


class _PickledArray:
    """The description of an array or a dtype in a pickle."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self) -> Images | None:
        """The rows of a uint8 array of shape (N, 3072); None where it is another, or its bytes don't fill it."""
        match self.state:
            case (_, (int(count), 3072), _PickledArray(arguments=("u1" | b"u1", *_)), False, bytes(content)):
                if len(content) == count * _PIXELS:
                    return np.frombuffer(content, np.uint8).reshape(count, _PIXELS)
        return None
