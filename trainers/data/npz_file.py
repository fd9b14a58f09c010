"""Reads `.npz` and `.npy` files, of which nothing is ever executed, and labelled images, under the names of the field.

    Keras      x_train, y_train, x_test, y_test
    MedMNIST   train_images, train_labels, test_images, test_labels

Images are uint8 of shape (N, H, W) or (N, H, W, C), labels whole numbers of shape (N,) or (N, 1). An optional array of
texts, `class_names`, names the classes.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.io.named_file import why_unreadable
from vsfix.graph_passes.ir.runtime import Array

_LARGE = 1 << 30  # bytes that are read whatever they are packed to
_MOST_GROWTH = 100
# What numpy lets through when a header is no header of an array.
_OF_A_HEADER = (OverflowError, SyntaxError, IndexError, TypeError, KeyError, AttributeError)
_MOST_CLASSES = 100_000
_FORMS = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}


def read_npz(path: Path) -> dict[str, Array]:
    """All arrays of a file, by their names.

    Raises:
        InputError: no such file, or it can't be opened.
        DataError: no `.npz` file, a damaged one, one with Python objects in it, or one that unpacks to far too much.
    """
    # Opened here, because numpy leaves a file that it can't read open.
    with _opened(path) as file:
        return _read_arrays(file, path)


def read_npy(path: Path) -> Array:
    """The array of an `.npy` file, mapped: rows are read from the disk when they are asked for.

    Raises:
        InputError: no such file, or it can't be opened.
        DataError: no `.npy` file, a damaged one, or one with Python objects in it.
    """
    with _opened(path) as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            raise DataError(f"{path}: is not an .npy file; write one with numpy.save")
    try:
        array: Array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, tokenize.TokenError) as error:
        if "object" in str(error).lower():
            raise DataError(f"{path}: holds Python objects, which are never loaded; save plain numbers") from None
        raise DataError(f"{path}: is damaged; write it again with numpy.save") from None
    except (OSError, EOFError, MemoryError, *_OF_A_HEADER):
        raise DataError(f"{path}: is damaged; write it again with numpy.save") from None
    return array


def _opened(path: Path) -> BinaryIO:
    """A file that can be read, opened."""
    if (reason := why_unreadable(path)) is not None:
        raise InputError(f"{path}: {reason}")
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None


def _read_arrays(file: BinaryIO, path: Path) -> dict[str, Array]:
    """All arrays of an open file."""
    try:
        content = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile):
        raise DataError(f"{path}: is not an .npz file; write one with numpy.savez") from None
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise DataError(f"{path}: is a single array; write it with numpy.savez under the name of the model's input")
    with content:
        assert content.zip is not None  # while it is open
        _refuse_bomb(content.zip, path)
        if len(set(content.files)) < len(content.files):
            raise DataError(f"{path}: two of its arrays have the same name; write it anew with numpy.savez")
        return {name: _read_array(content, name, path) for name in content.files}


def _refuse_bomb(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses a file that takes far more memory than room on the disk; images shrink to a tenth at most."""
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > _LARGE and unpacked > _MOST_GROWTH * path.stat().st_size:
        raise DataError(
            f"{path}: unpacks to {unpacked >> 20} MiB, over {_MOST_GROWTH} times its size; write it with numpy.savez, "
            "not compressed, if that is meant"
        )


def _read_array(content: np.lib.npyio.NpzFile, name: str, path: Path) -> Array:
    """One array; numpy reads it only now, and finds only now what is wrong with it."""
    try:
        array = content[name]
    except (ValueError, tokenize.TokenError) as error:  # numpy reads a header with Python's own tokenizer
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path}: array {name!r} holds Python objects, which are never loaded; save plain numbers"
            ) from None
        raise DataError(f"{path}: array {name!r} is damaged") from None
    except (OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, *_OF_A_HEADER):
        raise DataError(f"{path}: array {name!r} is damaged") from None
    except RuntimeError as error:  # encrypted, packed in a way that Python does not know, or nested too deep
        raise DataError(f"{path}: array {name!r} can't be unpacked ({error})") from None
    # A member that does not end in .npy comes back as raw bytes.
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {name!r} is no array; write the file with numpy.savez")
    return array.astype(array.dtype.newbyteorder("="), copy=False)  # of the machine: no runtime takes the other order


def read_labelled_npz(path: Path, split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], tuple[str, ...]]:
    """Reads one part.

    Args:
        path: the file.
        split: "train" or "test".

    Returns:
        (images of shape (N, H, W, C), labels of shape (N,), the names of the classes).

    Raises:
        InputError: no such file.
        DataError: a damaged file, or one that holds something else.
    """
    arrays = read_npz(path)
    images, labels = _pair(arrays, split, path)
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu":
        raise DataError(f"{path}: labels are {labels.dtype}; whole numbers are needed")
    return images, labels.astype(np.int64), _class_names(arrays, path)


def _pair(arrays: Mapping[str, Any], split: str, path: Path) -> tuple[Any, Any]:
    for names in _FORMS[split]:
        if all(name in arrays for name in names):
            return arrays[names[0]], arrays[names[1]]
    wanted = " or ".join(" and ".join(names) for names in _FORMS[split])
    raise DataError(f"{path}: holds {', '.join(sorted(arrays)) or 'nothing'}; to train on it needs {wanted}")


def _class_names(arrays: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The names in the file, or the numbers up to the largest label of both parts."""
    if "class_names" in arrays:
        names = arrays["class_names"]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise DataError(f"{path}: class_names is {names.dtype} of shape {names.shape}; a list of texts is needed")
        return tuple(str(name) for name in names)
    parts = [_pair(arrays, split, path)[1] for split in _FORMS]
    for labels in parts:
        if labels.dtype.kind not in "iu":
            raise DataError(f"{path}: labels are {labels.dtype}; whole numbers are needed")
    largest = max(int(labels.max(initial=0)) for labels in parts)
    if largest >= _MOST_CLASSES:
        raise DataError(f"{path}: holds a label of {largest}; {_MOST_CLASSES:,} classes are the most")
    return tuple(str(label) for label in range(largest + 1))
