"""Labelled images from the library `datasets` (Hugging Face): a name of its hub, or a folder of `save_to_disk`.

The column of the images and that of the labels are found by their types, Image and ClassLabel. Images are decoded when
they are asked for, and cut as `images` says.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import DataError, InputError, MissingComponentError
from vsfix.graph_passes.io.named_file import user_path

from .images import CroppedImages

_TEST_PARTS = ("test", "validation", "valid")


def read_hub_dataset(
    name: str, split: str, size: tuple[int, int]
) -> tuple[CroppedImages, npt.NDArray[np.int64], tuple[str, ...]]:
    """Loads one part.

    Args:
        name: of the hub, or a folder.
        split: "train" or "test".
        size: (height, width) in pixels.

    Returns:
        (images, their labels, the names of the classes).

    Raises:
        MissingComponentError: the library is not installed.
        InputError: there is no such set, or no such part.
        DataError: it has no column of images or of labels.
    """
    part = _part(name, split)
    kinds = {type(feature).__name__: column for column, feature in part.features.items()}
    if "Image" not in kinds or "ClassLabel" not in kinds:
        raise DataError(f"hf:{name}: has no column of type Image or none of type ClassLabel, but {sorted(kinds)}")
    labels = np.array(part[kinds["ClassLabel"]], dtype=np.int64)
    names = tuple(str(label) for label in part.features[kinds["ClassLabel"]].names)
    undecoded = type(part.features[kinds["Image"]])(decode=False)  # the library would take any format
    rows = part.cast_column(kinds["Image"], undecoded)
    return CroppedImages(partial(_stored, rows, kinds["Image"]), np.arange(len(rows)), size), labels, names


def _stored(rows: Any, column: str, row: int) -> tuple[Path | bytes, str]:
    """The bytes of an image, or the path of its file."""
    found = rows[row][column] or {}
    return found.get("bytes") or (Path(found["path"]) if found.get("path") else b""), f"hf: image {row}"


def _part(name: str, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingComponentError("data 'hf': datasets is not installed; run: pip install 'vsfix[hf]'") from None
    try:
        local = (user_path(name) / "dataset_dict.json").exists()
        found = datasets.load_from_disk(name) if local else datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"hf:{name}: can't be loaded ({reason}); name a set of the hub or a saved folder") from None
    for part in ("train",) if split == "train" else _TEST_PARTS:
        if part in found:
            return found[part]
    raise InputError(f"hf:{name}: has the parts {', '.join(found)}, none to {split} on")
