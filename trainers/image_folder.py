"""Folders of image files, one folder for each class, as ImageNet is laid out.

    DIR/train/CLASS/*.jpg        DIR/val/CLASS/*.jpg   (or DIR/test/CLASS/*.jpg)

Files are decoded when they are asked for. For evaluation the shorter side is brought to 256/224 of the wanted size and
the middle is cut out; for training a piece of 8 to 100 % of the area with an aspect of 3/4 to 4/3 is cut out at random.

Source: the crops are those of Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, arXiv 1409.4842, and of He,
Zhang, Ren, Sun, arXiv 1512.03385, as every ImageNet recipe since has them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import DataError, InputError, MissingComponentError

if TYPE_CHECKING:
    from PIL.Image import Image

EVALUATED_SHARE = 224 / 256
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
_AREA, _LOG_ASPECT = (0.08, 1.0), (math.log(3 / 4), math.log(4 / 3))
_ATTEMPTS = 10


@dataclass(frozen=True, eq=False)
class FolderImages:
    """The images of one part, decoded when they are asked for; see `images.Images`.

    Attributes:
        paths: the files.
        size: (height, width) that they are brought to, in pixels.
    """

    paths: Sequence[Path]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""
        return (len(self.paths), *self.size, 3)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Any) -> npt.NDArray[np.uint8]:
        chosen = np.arange(len(self))[rows]
        images = np.empty((len(chosen), *self.size, 3), dtype=np.uint8)
        for place, row in enumerate(chosen):
            images[place] = middle_of(_open(self.paths[row]), self.size)
        return images

    def random_crop(self, row: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
        """One image, cut out at random, shape (H, W, 3)."""
        return random_part_of(_open(self.paths[row]), self.size, generator)


def read_image_folder(
    folder: Path, split: str, size: tuple[int, int]
) -> tuple[FolderImages, npt.NDArray[np.int64], tuple[str, ...]]:
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
    return FolderImages(paths, size), np.array(labels, dtype=np.int64), names


def middle_of(image: Image, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The middle of an image, for evaluation, shape (*size, 3)."""
    height, width = size
    # The largest box of the wanted aspect in the image, and of that the middle.
    scale = min(image.width / width, image.height / height) * EVALUATED_SHARE
    return _resized(image, (width * scale, height * scale), (0.5, 0.5), size)


def random_part_of(image: Image, size: tuple[int, int], generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A random piece of an image, for training, shape (*size, 3); the middle where ten attempts find none that fits."""
    for _ in range(_ATTEMPTS):
        area = image.width * image.height * generator.uniform(*_AREA)
        aspect = math.exp(generator.uniform(*_LOG_ASPECT))
        width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        place = generator.random(), generator.random()
        if width <= image.width and height <= image.height:
            return _resized(image, (width, height), place, size)
    return middle_of(image, size)


def _resized(
    image: Image, part: tuple[float, float], place: tuple[float, float], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """A piece of (width, height), at this share of the room that it leaves, brought to (height, width) = size."""
    from PIL.Image import Resampling

    left, top = ((side - wide) * share for side, wide, share in zip(image.size, part, place, strict=True))
    box = (left, top, min(left + part[0], image.width), min(top + part[1], image.height))
    return np.asarray(image.resize((size[1], size[0]), Resampling.BILINEAR, box=box), dtype=np.uint8)


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise InputError(f"imagefolder: no folder {folder}; images belong into DIR/train/CLASS and DIR/val/CLASS")
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not names:
        raise InputError(f"imagefolder: {folder} holds no folders, one for each class")
    return names


def _open(path: Path) -> Image:
    try:
        from PIL import Image
    except ImportError:
        raise MissingComponentError("imagefolder: pillow is not installed; run: pip install 'vsfix[train]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{path}: can't be decoded ({reason}); remove or replace the file") from None
