"""Folders of image files, one folder for each class, as ImageNet is laid out.

    DIR/train/CLASS/*.jpg        DIR/val/CLASS/*.jpg   (or DIR/test/CLASS/*.jpg)

Files are decoded when they are asked for, and cut as `images` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import InputError

from .images import CroppedImages

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def read_image_folder(
    folder: Path, split: str, size: tuple[int, int]
) -> tuple[CroppedImages, npt.NDArray[np.int64], tuple[str, ...]]:
    """Lists one part.

    Args:
        folder: see the head of this module.
        split: "train" or "test".
        size: (height, width) in pixels.

    Returns:
        (images, their labels, the names of the classes: those of the training folders, sorted).

    Raises:
        InputError: a folder is missing or empty, or the parts have other classes.
    """
    training = folder / "train"
    names = _classes(training)
    part = training if split == "train" else next((p for p in (folder / "val", folder / "test") if p.is_dir()), None)
    if part is None:
        raise InputError(f"imagefolder: {folder} holds no folder 'val' and no 'test'; images to test on belong there")
    unknown = sorted(set(_classes(part)) - set(names))
    if unknown:
        raise InputError(f"imagefolder: {part / unknown[0]} is a class that {training} does not have")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(p for p in (part / name).rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise InputError(f"imagefolder: {part} holds no images ({', '.join(sorted(_SUFFIXES))})")
    images = CroppedImages(partial(_stored, paths), np.arange(len(paths)), size)
    return images, np.array(labels, dtype=np.int64), names


def _stored(paths: Sequence[Path], row: int) -> tuple[Path, str]:
    return paths[row], str(paths[row])


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise InputError(f"imagefolder: no folder {folder}; images belong into DIR/train/CLASS and DIR/val/CLASS")
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not names:
        raise InputError(f"imagefolder: {folder} holds no folders, one for each class")
    return names
