"""Sets of images: in memory, or decoded from files of strangers and cut when they are asked for.

Four formats are decoded, no program is started, and no picture unpacks to more than it may.

For evaluation an image of the wanted size is taken as it is; of others the shorter side is brought to 256/224 of the
wanted size and the middle is cut out. For training a piece of 8 to 100 % of the area with an aspect of 3/4 to 4/3 is
cut out at random.

Source: the crops are those of Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, arXiv 1409.4842, and of He,
Zhang, Ren, Sun, arXiv 1512.03385, as every ImageNet recipe since has them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import DataError, MissingComponentError

if TYPE_CHECKING:
    from PIL.Image import Image

# No others: pillow takes a file for what it holds, whatever its name, and runs Ghostscript on PostScript.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
EVALUATED_SHARE = 224 / 256
_AREA, _LOG_ASPECT = (0.08, 1.0), (math.log(3 / 4), math.log(4 / 3))
_ATTEMPTS = 10


def decode_image(source: Path | bytes, name: str) -> Image:
    """One image in three channels of eight bits.

    Args:
        source: a file, or what stands in one.
        name: what messages call it.

    Raises:
        DataError: damaged, of another format, of more than eight bits a channel, which pillow would cut off at white,
            or of more pixels than pillow takes for no attack (some 90 million).
        MissingComponentError: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingComponentError("images: pillow is not installed; run: pip install 'vsfix[train]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
                if image.mode.startswith(("I", "F")):
                    raise DataError(
                        f"{name}: more than eight bits a channel (mode {image.mode}); bring it to eight bits first"
                    )
                return image.convert("RGB")
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file surfaces as whatever a decoder of pillow stumbles into
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{name}: can't be decoded ({reason}); remove or replace the file") from None


@dataclass(frozen=True, eq=False)
class CroppedImages:
    """Images that are decoded when rows are asked for, indexed like an array of uint8.

    Attributes:
        stored: the file of an image, or its content, and its name in messages, by the number of the image.
        rows: the images of the set, int64, shape (N,).
        size: (height, width) that they are brought to, in pixels.
    """

    stored: Callable[[int], tuple[Path | bytes, str]]
    rows: npt.NDArray[np.int64]
    size: tuple[int, int]
    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""
        return (len(self), *self.size, 3)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> npt.NDArray[np.uint8]:
        chosen = self.rows[rows]
        images = np.empty((len(chosen), *self.size, 3), dtype=np.uint8)
        for index, row in enumerate(chosen):
            images[index] = middle_of(decode_image(*self.stored(int(row))), self.size)
        return images

    def choose(self, rows: npt.NDArray[np.int64]) -> CroppedImages:
        """The set of some of the images, none of them decoded."""
        return replace(self, rows=self.rows[rows])

    def random_crop(self, row: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
        """One image, cut out at random, shape (H, W, 3)."""
        return random_part_of(decode_image(*self.stored(int(self.rows[row]))), self.size, generator)


Images = npt.NDArray[np.uint8] | CroppedImages
"""A set of images of one size, shape (N, H, W, C), uint8; rows of it are an array."""


def middle_of(image: Image, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The middle of an image, for evaluation, shape (*size, 3); the whole of one that has this size already."""
    height, width = size
    # Whoever stores images at the size of the network has trained on them whole.
    return np.array(image) if image.size == (width, height) else _middle(image, size)


def _middle(image: Image, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The middle 224/256 of the largest part of the wanted aspect."""
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
        position = generator.random(), generator.random()
        if width <= image.width and height <= image.height:
            return _resized(image, (width, height), position, size)
    return _middle(image, size)


def _resized(
    image: Image, part: tuple[float, float], position: tuple[float, float], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """A piece of (width, height), at this share of the room that it leaves, brought to (height, width) = size."""
    from PIL.Image import Resampling

    left, top = ((side - wide) * share for side, wide, share in zip(image.size, part, position, strict=True))
    box = (left, top, min(left + part[0], image.width), min(top + part[1], image.height))
    return np.asarray(image.resize((size[1], size[0]), Resampling.BILINEAR, box=box), dtype=np.uint8)
