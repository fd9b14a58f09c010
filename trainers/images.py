"""Images that may lie in memory or be decoded when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Images(Protocol):
    """A set of images of one size: an array, or what is indexed like one. A slice or an array of rows gives an array.

    Attributes:
        shape: (N, H, W, C).
        dtype: uint8.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a value, uint8."""
        ...

    def __getitem__(self, rows: Any, /) -> npt.NDArray[np.uint8]:
        """The images of these rows, shape (n, H, W, C)."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class ChosenImages:
    """Some of the images of a larger set that is decoded when it is asked for.

    Attributes:
        images: the set.
        rows: which of them, int64, shape (n,).
    """

    images: Images
    rows: npt.NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, H, W, C)."""
        return (len(self.rows), *self.images.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        return self.images.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> npt.NDArray[np.uint8]:
        return self.images[self.rows[rows]]

    def random_crop(self, row: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
        """See the function of this name."""
        return random_crop(self.images, int(self.rows[row]), generator)


def random_crop(images: Images, row: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One image, cut out at random where the set can do that, shape (H, W, C).

    Args:
        images: the set.
        row: which of them.
        generator: draws the place and the size.
    """
    crop = getattr(images, "random_crop", None)
    cut: npt.NDArray[np.uint8] = images[row : row + 1][0] if crop is None else crop(row, generator)
    return cut
