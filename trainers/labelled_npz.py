"""Labelled images in one `.npz` file, under the names that the field uses.

    Keras      x_train, y_train, x_test, y_test
    MedMNIST   train_images, train_labels, test_images, test_labels

Images are uint8 of shape (N, H, W) or (N, H, W, C), labels whole numbers of shape (N,) or (N, 1). An optional array of
texts, `class_names`, names the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import DataError

from .npz_file import read_npz

_MOST_CLASSES = 100_000
_FORMS = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}


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
