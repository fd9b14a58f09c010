"""Augmentation of the training images of a batch, on the device that they lie on.

    crop     the image, padded by that many pixels of the mean colour, cut out again at a random position
    flip     left and right swapped in half of the images
    cutout   a square of the mean colour around a random point; what lies outside the image is lost
    mixup    x <- l x + (1 - l) x', and the loss alike, with one l ~ Beta(alpha, alpha) for the batch

What is drawn follows from the seed of the step alone, for the joint batch of all processes, so that the same images
are cropped, flipped and cut alike however many processes share them. The partners of mixup are images of one process.

Sources: crop and flip as in He, Zhang, Ren, Sun, arXiv 1512.03385; DeVries, Taylor, "Improved Regularization of
Convolutional Neural Networks with Cutout", arXiv 1708.04552; Zhang, Cisse, Dauphin, Lopez-Paz, "mixup", arXiv
1710.09412.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from vsfix.graph_passes.errors import InputError

_KINDS: Mapping[str, Callable[..., object]] = {"crop": int, "flip": bool, "cutout": int, "mixup": float}


@dataclass(frozen=True)
class Augmentation:
    """The changes to a training image; the default is none.

    Attributes:
        crop: the padding in pixels; 0 for no crop.
        flip: whether images are mirrored.
        cutout: the side of the square in pixels; 0 for none.
        mixup: alpha; 0 for none.

    Raises:
        InputError: a value of the wrong type or outside its range.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop", "cutout"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1024:
                raise InputError(f"training: {name} must be a whole number of pixels up to 1024, not {value!r}")
        if not isinstance(self.flip, bool):
            raise InputError(f"training: flip must be true or false, not {self.flip!r}")
        if not isinstance(self.mixup, int | float) or isinstance(self.mixup, bool) or not 0 <= self.mixup <= 100:
            raise InputError(f"training: mixup must be a number from 0 to 100, not {self.mixup!r}")

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """Reads `none`, or what is to be done, as in `crop:4,flip,cutout:8,mixup:0.2`.

        Raises:
            InputError: another form, or a value outside its range.
        """
        given: dict[str, Any] = {}
        for part in text.split(",") if text != "none" else ():
            name, colon, value = part.partition(":")
            kind = _KINDS.get(name)
            if kind is None or name in given or bool(colon) == (kind is bool):
                raise InputError(f"augmentation '{text}': write none, or parts of crop:4,flip,cutout:8,mixup:0.2")
            try:
                given[name] = kind(value or True)
            except ValueError:
                raise InputError(f"augmentation '{text}': '{value}' is no number that {name} takes") from None
        return cls(**given)


@dataclass(frozen=True, eq=False)
class Draw:
    """The random numbers for the images of one process in one step.

    Attributes:
        top: the first row of the crop in the padded image, int64, shape (N,).
        left: its first column, int64, shape (N,).
        mirrored: whether the image is flipped, bool, shape (N,).
        centre: row and column of the square's centre as shares of the image, float64, shape (N, 2).
        share: mixup's l.
    """

    top: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    mirrored: npt.NDArray[np.bool_]
    centre: npt.NDArray[np.float64]
    share: float

    def part(self, rows: slice) -> Draw:
        """The numbers of these images of the batch."""
        return Draw(self.top[rows], self.left[rows], self.mirrored[rows], self.centre[rows], self.share)


def draw_augmentation(augmentation: Augmentation, images: int, seed: int) -> Draw:
    """Draws for a batch of so many images."""
    generator: Any = np.random.default_rng(seed)
    # All of it is drawn, whatever is used, so that one option does not change what another one does.
    return Draw(
        top=generator.integers(0, 2 * augmentation.crop, images, endpoint=True),
        left=generator.integers(0, 2 * augmentation.crop, images, endpoint=True),
        mirrored=generator.random(images) < 0.5,
        centre=generator.random((images, 2)),
        share=float(generator.beta(augmentation.mixup, augmentation.mixup)) if augmentation.mixup else 1.0,
    )


def augment(images: torch.Tensor, augmentation: Augmentation, draw: Draw) -> torch.Tensor:
    """Crops, flips, cuts out and mixes.

    Args:
        images: preprocessed, so that 0 is the mean colour; float, shape (N, C, H, W).
        augmentation: what to do.
        draw: of these N images.

    Returns:
        The images, of the same shape, on the same device; image k is mixed with image N - 1 - k.
    """
    if augmentation.crop:
        images = _crop(images, augmentation.crop, draw)
    if augmentation.flip:
        mirrored = torch.from_numpy(draw.mirrored).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if augmentation.cutout:
        images = images.masked_fill(_squares(images, augmentation.cutout, draw), 0)
    if augmentation.mixup:
        images = draw.share * images + (1 - draw.share) * images.flip(0)
    return images


def _crop(images: torch.Tensor, padding: int, draw: Draw) -> torch.Tensor:
    """The window of each image, (N, C, H, W) -> (N, C, H, W)."""
    count, channels, height, width = images.shape
    device = images.device
    rows = torch.from_numpy(draw.top).to(device)[:, None] + torch.arange(height, device=device)  # (N, H)
    columns = torch.from_numpy(draw.left).to(device)[:, None] + torch.arange(width, device=device)  # (N, W)
    samples = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    padded = F.pad(images, (padding, padding, padding, padding))
    return padded[samples, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _squares(images: torch.Tensor, side: int, draw: Draw) -> torch.Tensor:
    """The square of each image as a mask, bool, shape (N, 1, H, W)."""
    inside = []
    for axis, size in enumerate(images.shape[2:]):
        first = torch.from_numpy((draw.centre[:, axis] * size).astype(np.int64) - side // 2).to(images.device)
        index = torch.arange(size, device=images.device)
        inside.append((index >= first[:, None]) & (index < first[:, None] + side))  # (N, size)
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def mixed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, share: float, smoothing: float) -> torch.Tensor:
    """Cross-entropy, smoothed; of mixed images, mixed: l CE(y) + (1 - l) CE(y'), y' the labels from the end.

    Args:
        logits: shape (N, num_classes).
        labels: int64, shape (N,).
        share: l, the weight of each image itself; 1 where nothing is mixed.
        smoothing: the share of each label that is distributed over all classes, in [0, 1).

    Returns:
        The mean over the batch, shape ().
    """
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if share == 1:
        return loss
    return share * loss + (1 - share) * F.cross_entropy(logits, labels.flip(0), label_smoothing=smoothing)
