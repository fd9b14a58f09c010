"""The preprocessing of an image before the network sees it, and its description in the file of the model.

    y = (x / 255 - mean) / std        x: uint8 (N, H, W, C), y: float32 (N, C, h, w), mean and std per channel

The description stands as one JSON object in the metadata_props of the ONNX file, so that whoever runs the model feeds
it what it was trained on.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import DataError, InputError

MOST_PIXELS = 1 << 26  # of one image, 8192 x 8192
METADATA_KEY = "vsfix.preprocessing"
_VERSION = 1
_IMAGES_AT_ONCE = 4096


@dataclass(frozen=True)
class Preprocessing:
    """The function from stored images to the network's input.

    Attributes:
        channels: C, the channels of an image.
        size: (h, w), the height and width of the network's input in pixels.
        mean: what is subtracted from x / 255, one number per channel.
        std: what the difference is divided by, one positive number per channel.
        class_names: the names of the network's outputs in their order; empty where they are unknown.

    Raises:
        InputError: a number is out of range, or mean and std don't fit the channels.
    """

    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.channels < 1 or len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"preprocessing: {self.channels} channels of size {self.size} are no image")
        if math.prod(self.size) > MOST_PIXELS:
            raise InputError(f"preprocessing: images of size {self.size}; {MOST_PIXELS:,} pixels are the most")
        if not len(self.mean) == len(self.std) == self.channels:
            raise InputError(
                f"preprocessing: {len(self.mean)} means and {len(self.std)} deviations for {self.channels} channels;"
                " give one of each per channel"
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise InputError("preprocessing: means must be finite, deviations finite and above 0")

    def apply(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Standardizes images.

        Args:
            images: uint8, shape (N, H, W, C), values 0 to 255.

        Returns:
            float32, shape (N, C, h, w), rounded once from float64.

        Raises:
            DataError: the array is not uint8 of rank 4.
            InputError: the images have other channels or another size. Nothing is converted or resized here.
        """
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(f"images: {images.dtype} of shape {images.shape}; uint8 of shape (N, H, W, C) is needed")
        height, width, channels = images.shape[1:]
        if channels != self.channels:
            raise InputError(
                f"images: {channels} channels, but the model takes {self.channels};"
                " colour is not converted, give images with the model's channels"
            )
        if (height, width) != tuple(self.size):
            raise InputError(
                f"images: {height}x{width} pixels, but the model takes {self.size[0]}x{self.size[1]};"
                " images are not resized, give them in the model's size"
            )
        # A byte has 256 values, so a table per channel gives the float64 result at the price of a look-up.
        levels = np.arange(256, dtype=np.float64) / 255
        outputs = np.empty((len(images), channels, height, width), dtype=np.float32)
        for channel in range(channels):
            with np.errstate(over="ignore"):  # whoever takes the images refuses infinite ones
                table = ((levels - self.mean[channel]) / self.std[channel]).astype(np.float32)
            for start in range(0, len(images), _IMAGES_AT_ONCE):
                part = slice(start, start + _IMAGES_AT_ONCE)
                outputs[part, channel] = table[images[part, :, :, channel]]
        return outputs

    def to_json(self) -> str:
        """The description as one line of JSON; `from_json` gives back an equal object."""
        return json.dumps(
            {
                "version": _VERSION,
                "layout": "NCHW",
                "scale": 255,
                "channels": self.channels,
                "size": list(self.size),
                "mean": list(self.mean),
                "std": list(self.std),
                "class_names": list(self.class_names),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Reads what `to_json` wrote.

        Raises:
            InputError: no such JSON, another version, or a value of the wrong type or range.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"preprocessing: not JSON ({error}); export the model again") from None
        if not isinstance(fields, dict):
            raise InputError("preprocessing: not a JSON object; export the model again")
        fixed = (fields.get("version"), fields.get("layout"), fields.get("scale"))
        if fixed != (_VERSION, "NCHW", 255):
            raise InputError(
                f"preprocessing: version, layout and scale are {fixed}, but this vsfix reads"
                f" {(_VERSION, 'NCHW', 255)}; export the model again"
            )
        return cls(
            channels=_whole(fields.get("channels"), "channels"),
            size=_size(fields.get("size")),
            mean=tuple(_real(value, "mean") for value in _list(fields.get("mean"), "mean")),
            std=tuple(_real(value, "std") for value in _list(fields.get("std"), "std")),
            class_names=tuple(_text(value) for value in _list(fields.get("class_names"), "class_names")),
        )


def _malformed(field: str, wanted: str) -> InputError:
    """The error of a field that is missing or of another type."""
    return InputError(f"preprocessing: '{field}' must be {wanted}; export the model again")


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise _malformed(field, "a list")
    return value


def _size(value: Any) -> tuple[int, int]:
    sides = [_whole(side, "size") for side in _list(value, "size")]
    if len(sides) != 2:
        raise _malformed("size", "height and width")
    return sides[0], sides[1]


def _whole(value: Any, field: str) -> int:
    # In Python True is an int, in JSON it is not.
    if not isinstance(value, int) or isinstance(value, bool):
        raise _malformed(field, "whole numbers" if field == "size" else "a whole number")
    return value


def _real(value: Any, field: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _malformed(field, "numbers")
    try:
        return float(value)
    except OverflowError:
        raise _malformed(field, "finite numbers") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise _malformed("class_names", "names, in Unicode")
    return value
