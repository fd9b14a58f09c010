"""Arrays brought to what a model takes: cast where no number is lost but by rounding, images of bytes normalised.

    floats, whole numbers, bool    cast to the model's type; what does not fit is an error
    images of bytes                (x / 255 - mean) / std, where a person or the file says mean and std; else an error:
                                   taken for numbers they are 255 times too large, and nothing fails

An image of bytes is an array of uint8 for an input of floats. Its channels may stand last and the model's first, or the
other way round, where the sides leave no doubt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.ir.runtime import Array
from vsfix.trainers.data.preprocessing import Preprocessing

from .samples import check_array

HOW_TO_NORMALISE = (
    "say how the training normalised pixels between 0 and 1, with --mean and --std (one number, or one for each "
    "channel, as --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225; --mean 0 --std 1 leaves them between 0 and 1)"
)
_CHANNELS = range(1, 5)  # of an image; more is a side
_IMAGE_RANK = 4
Note = Callable[[str], None]


@dataclass(frozen=True)
class ModelInput:
    """An input of a model, as far as the model says what it takes.

    Attributes:
        name: its name.
        dtype: of its numbers; None where that is unknown, or a type that numpy has not.
        shape: of one sample, 0 for a side of any length; None where it is unknown.
    """

    name: str
    dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] | None = None

    @property
    def channel_axis(self) -> int | None:
        """The axis of the channels in one sample of an image, 0 or 2; None where the shape does not tell it."""
        if self.shape is None or len(self.shape) != 3:
            return None
        first, last = (self.shape[axis] in _CHANNELS for axis in (0, 2))
        return None if first == last else 0 if first else 2

    @property
    def channels(self) -> int | None:
        """The channels of an image; None where the shape does not tell them."""
        return None if self.channel_axis is None or self.shape is None else self.shape[self.channel_axis]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of an image; None where they are free or unknown."""
        if self.channel_axis is None or self.shape is None:
            return None
        height, width = self.shape[1:] if self.channel_axis == 0 else self.shape[:2]
        return (height, width) if height and width else None

    @property
    def width(self) -> int | None:
        """The numbers of a row that it takes; None for any number, or where it takes no rows."""
        if self.shape == ():
            return 1
        return (self.shape[0] or None) if self.shape is not None and len(self.shape) == 1 else None

    def takes(self, sides: Sequence[int]) -> bool:
        """Whether samples of these sides fit."""
        return self.shape is None or (
            len(sides) == len(self.shape)
            and all(wanted in (0, side) for side, wanted in zip(sides, self.shape, strict=True))
        )


@dataclass(frozen=True)
class Normalization:
    """What a person says of the images of the training, for a model that does not say it.

    Attributes:
        mean: what was subtracted from pixels between 0 and 1: one number, or one for each channel; None for unsaid.
        std: what the difference was divided by, likewise.
        size: (height, width) that image files are brought to; None for that of the model.

    Raises:
        InputError: numbers that are no normalisation, or one of mean and std alone.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise InputError("--mean and --std go together: (x / 255 - mean) / std; --mean 0 --std 1 for neither")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not (values and all(map(math.isfinite, values))):
                raise InputError(f"--{name} {_listed(values)}: give one finite number, or one for each channel")
        if self.mean is not None and not all(0 <= value <= 1 for value in self.mean):
            raise InputError(
                f"--mean {_listed(self.mean)}: is that of pixels between 0 and 1; divide mean and deviation by 255"
            )
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"--std {_listed(self.std)}: must be above 0")
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"--size {self.size}: give height and width in pixels, as 224x224")

    def preprocessing(self, stated: Preprocessing | None, channels: int, size: tuple[int, int]) -> Preprocessing | None:
        """The preprocessing of images; None where neither a person nor the model says it.

        Args:
            stated: what the model says of its images.
            channels: of the images.
            size: (height, width) of the images.

        Raises:
            InputError: means and deviations for another number of channels.
        """
        if self.mean is None or self.std is None:
            return stated if stated is None or self.size is None else replace(stated, size=self.size)
        names = () if stated is None else stated.class_names
        mean, std = (values * channels if len(values) == 1 else values for values in (self.mean, self.std))
        if {len(mean), len(std)} != {channels}:
            raise InputError(
                f"--mean {_listed(self.mean)} --std {_listed(self.std)}: the images have {channels} channels; give one "
                "number, or one for each channel"
            )
        return Preprocessing(channels, size, mean, std, names)


def fit_array(
    array: Array,
    wanted: ModelInput,
    what: str,
    stated: Preprocessing | None,
    normalization: Normalization,
    note: Note,
) -> Array:
    """An array in the type and the layout that a model takes.

    Args:
        array: shape (N, ...), checked by `check_array`.
        wanted: what the model says of the input.
        what: the array in words, for messages.
        stated: the preprocessing that the model states.
        normalization: what a person says.
        note: takes what a person should know; called with the same text for each part of one set.

    Raises:
        DataError: values that do not fit the type, or another shape.
        InputError: images of bytes, and nobody says how they are normalised.
    """
    dtype = wanted.dtype
    if dtype is not None and dtype.kind == "f" and _is_image(array):
        array = _normalised(array, wanted, what, stated, normalization, note)
        return array if array.dtype == dtype else cast_array(array, dtype, what)
    if normalization.mean is not None:
        note(f"--mean and --std are for images of bytes: {what} is {array.dtype} and taken as it is")
    array = _as_column(array, wanted)
    _require_shape(array, wanted, what)
    if dtype is None or array.dtype == dtype:
        return array
    fitted = cast_array(array, dtype, what)
    note(f"{what} is {array.dtype}; cast to {dtype}, which the model takes")
    return fitted


def fit_images(
    images: npt.NDArray[np.uint8], wanted: ModelInput, what: str, preprocessing: Preprocessing | None
) -> Array:
    """Images as a model takes them.

    Args:
        images: shape (N, H, W, C).
        wanted: what the model says of the input.
        what: the images in words, for messages.
        preprocessing: None where the model takes bytes.

    Raises:
        DataError: numbers that are not finite, or another shape than the model takes.
        InputError: the preprocessing is that of images of another size, or of other channels.
    """
    found: Array = np.moveaxis(images, -1, 1)
    if preprocessing is not None:
        try:
            found = preprocessing.apply(images)
        except InputError as error:
            raise InputError(f"{what}: {error}") from None
        check_array(what, found)
    if wanted.channel_axis == 2:
        found = np.moveaxis(found, 1, -1)
    _require_shape(found, wanted, what)
    if wanted.dtype is None or found.dtype == wanted.dtype:
        return found
    return cast_array(found, wanted.dtype, what)


def cast_array(array: Array, dtype: np.dtype[Any], what: str) -> Array:
    """An array in another type; rounded to floats, and exactly to whole numbers.

    Raises:
        DataError: a value that does not fit, by its sample.
    """
    if dtype.kind not in "fiu":
        raise DataError(f"{what} is {array.dtype}, the model takes {dtype}; convert it with numpy's astype")
    with np.errstate(over="ignore", invalid="ignore"):
        found = array.astype(dtype)
        lost = ~np.isfinite(found) if dtype.kind == "f" else found.astype(array.dtype) != array
    if dtype.kind in "iu" and array.dtype.kind in "iu":  # of 64 bits, a sign that is lost comes back with the cast
        lost |= (found < 0) != (array < 0)
    elif dtype.kind in "iu" and array.dtype.kind == "f":  # a float past the largest number comes back as another
        limits, exact = np.iinfo(dtype), array.astype(np.float64, copy=False)
        lost |= (exact < limits.min) | (exact > limits.max)
    rows = np.flatnonzero(lost.reshape(len(array), -1).any(axis=1))
    if rows.size:
        value = array[rows[0]][lost[rows[0]]].flat[0] if array.ndim > 1 else array[rows[0]]
        raise DataError(
            f"{what} is {array.dtype}, the model takes {dtype}, which {value} of sample {rows[0]} does not fit"
        )
    return found


def _is_image(array: Array) -> bool:
    """Whether it holds images in whole numbers."""
    return array.dtype == np.uint8 or (array.dtype.kind in "iu" and array.ndim >= _IMAGE_RANK)


def _normalised(
    array: Array,
    wanted: ModelInput,
    what: str,
    stated: Preprocessing | None,
    normalization: Normalization,
    note: Note,
) -> Array:
    """Images of bytes as the model takes them."""
    if array.dtype != np.uint8:
        raise InputError(
            f"{what} is {array.dtype} of shape {array.shape}: give images as uint8, 0 to 255, and --mean and --std; or "
            f"what the model takes: ((x / 255 - mean) / std).astype('{wanted.dtype}')"
        )
    arranged = _channels_last(array, wanted, what)
    # Where no axis holds channels, all numbers of a sample are one.
    images, moved = arranged or (array.reshape(len(array), 1, -1, 1), "")
    preprocessing = normalization.preprocessing(stated, images.shape[3], (images.shape[1], images.shape[2]))
    if preprocessing is None:
        raise InputError(
            f"{what} is uint8, the model takes {wanted.dtype}: {HOW_TO_NORMALISE}; or give "
            f"((x / 255 - mean) / std).astype('{wanted.dtype}')"
        )
    if moved:
        note(f"{what}: the channels stand where the model does not have them; moved from {moved}")
    if normalization.mean is None:
        note(f"{what} is uint8; normalised as the model says")
    if arranged is not None:
        return fit_images(images, wanted, what, preprocessing)
    flat = _as_column(preprocessing.apply(images).reshape(array.shape), wanted)
    check_array(what, flat)
    _require_shape(flat, wanted, what)
    return flat


def _channels_last(
    array: npt.NDArray[np.uint8], wanted: ModelInput, what: str
) -> tuple[npt.NDArray[np.uint8], str] | None:
    """Images of shape (N, H, W, C), and how their channels move to where the model has them; None for no images."""
    axis = wanted.channel_axis
    if axis is not None and wanted.channels == 1 and array.ndim == _IMAGE_RANK - 1:
        array = array[:, np.newaxis] if axis == 0 else array[..., np.newaxis]
    if axis is None or array.ndim != _IMAGE_RANK:
        return None
    sides = array.shape[1:]
    is_other = wanted.takes((sides[2], *sides[:2]) if axis == 0 else (*sides[1:], sides[0]))
    if is_other and wanted.takes(sides):
        if sides[0] != 1 or sides[2] != 1:  # of one channel either way is the same
            raise InputError(f"{what}: samples of {_sides(sides)} may have their channels first or last; give floats")
        is_other = False
    if not is_other:
        _require_shape(array, wanted, what)
    is_last = (axis == 0) == is_other
    moved = "" if not is_other else "NHWC to NCHW" if axis == 0 else "NCHW to NHWC"
    return (array if is_last else np.moveaxis(array, 1, -1)), moved


def _as_column(array: Array, wanted: ModelInput) -> Array:
    """An array of one number a sample, with an axis for it where the model has one."""
    if wanted.shape is not None and array.ndim == 1 and len(wanted.shape) == 1:
        return array[:, np.newaxis]
    return array[:, 0] if wanted.shape == () and array.ndim == 2 and array.shape[1] == 1 else array


def _require_shape(array: Array, wanted: ModelInput, what: str) -> None:
    """Refuses samples of another shape than the model states."""
    sides = array.shape[1:]
    if wanted.shape is None or wanted.takes(sides):
        return
    remedy = ""
    if len(sides) == 3 and wanted.takes((sides[2], *sides[:2])):
        remedy = "; its channels come first: np.moveaxis(x, -1, 1)"
    elif len(sides) == 3 and wanted.takes((*sides[1:], sides[0])):
        remedy = "; its channels come last: np.moveaxis(x, 1, -1)"
    raise DataError(
        f"{what} has samples of {_sides(sides)}, the model takes "
        f"{'x'.join(str(side or '?') for side in wanted.shape) or 'no axes'}{remedy}"
    )


def _sides(sides: Sequence[int]) -> str:
    """The shape of one sample for a person."""
    return "x".join(map(str, sides)) or "no axes"


def _listed(values: Sequence[float]) -> str:
    """Numbers as an option takes them."""
    return ",".join(f"{value:g}" for value in values)
