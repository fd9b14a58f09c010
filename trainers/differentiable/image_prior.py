"""Images without data: a start with the statistics of all photographs, and the parameters by which they may change.

The start is the dead leaves model: opaque shapes of all sizes and of one brightness each, every one covering what lies
under it. It has what makes statistics natural: a power spectrum near 1/f^2, edges, flat areas, and differences between
one image and the next. For inputs whose positions are not two (signals, volumes) the start is 1/f noise, for inputs
without positions, (N, C), white noise.

Where the range of the pixels is known they stay in it; else an offset and a gain for each channel are free too, so
that an unknown normalisation is found in a few steps:

    x = low + (high - low) sigmoid(u)        or        x = offset + exp(log_gain) u

Sources: Lee, Mumford, Huang, "Occlusion Models for Natural Images", IJCV 41, 2001 (dead leaves); Baradad et al.,
"Learning to See by Looking at Noise", NeurIPS 2021, arXiv 2106.05963 (that networks take them for images); Field,
JOSA A 4, 1987 (1/f).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .onnx_call import along

_LEAVES = 40  # per image: enough to cover nearly every pixel
_RADII = (0.05, 0.5)  # of a leaf, in sides of the image; the density falls with the cube
_DARKEST = 0.02  # of a pixel at the start, in its range: at 0 and at 1 a sigmoid has no gradient


@dataclass(frozen=True)
class PixelRange:
    """The values that a pixel of each channel can have, both of shape (C,), as the network takes them."""

    low: torch.Tensor
    high: torch.Tensor


class ImagePrior:
    """Inputs of one shape, as a function of the parameters that a gradient may change.

    Args:
        shape: (N, C, *positions), or (N, C) for inputs without positions.
        pixel_range: what the pixels can be; None where it is not known.
        generator: draws the start.

    Attributes:
        parameters: those that a gradient may change.
    """

    def __init__(self, shape: tuple[int, ...], pixel_range: PixelRange | None, generator: torch.Generator) -> None:
        start = draw_start(shape, generator)
        self._per_channel = along(1, len(shape))
        self._range = pixel_range
        if pixel_range is not None:
            self._u = torch.logit(start, eps=_DARKEST).requires_grad_()
            self.parameters = [self._u]
            return
        self._u = ((start - start.mean()) / start.std()).requires_grad_()
        self._offset = torch.zeros(shape[1], requires_grad=True)
        self._log_gain = torch.zeros(shape[1], requires_grad=True)
        self.parameters = [self._u, self._offset, self._log_gain]

    def images(self) -> torch.Tensor:
        """The inputs, of the shape given, differentiable in the parameters."""
        if self._range is None:
            gain, offset = (values.reshape(self._per_channel) for values in (self._log_gain.exp(), self._offset))
            return offset + gain * self._u
        low, high = (end.reshape(self._per_channel) for end in (self._range.low, self._range.high))
        return low + (high - low) * torch.sigmoid(self._u)


def draw_start(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Inputs with values in [0, 1] and the structure of images, as far as the shape has positions for one."""
    if len(shape) == 4:
        return draw_dead_leaves(shape[0], shape[1], (shape[2], shape[3]), generator)
    white = torch.randn(shape, generator=generator)
    return torch.sigmoid(_coloured(white) if len(shape) > 2 else white)


def draw_dead_leaves(count: int, channels: int, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Ellipses and rectangles that cover each other.

    Args:
        count: N, of images.
        channels: C; a leaf has a value of its own in each.
        size: (h, w).
        generator: of the draws.

    Returns:
        Shape (N, C, h, w), values in [0, 1].
    """

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    rows, columns = (torch.arange(side) + 0.5 for side in size)
    images = draw(count, channels, 1, 1).expand(count, channels, *size).clone()
    for _ in range(_LEAVES):
        centre, angle = draw(count, 2, 1, 1), draw(count, 1, 1) * torch.pi
        dy, dx = rows[:, None] - centre[:, 0] * size[0], columns - centre[:, 1] * size[1]  # (N, h, w)
        along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
        aspect = torch.exp(draw(count, 1, 1) - 0.5)
        radius = _radii(draw(count, 1, 1)) * min(size)
        a, b = along.abs() / (radius * aspect), across.abs() / (radius / aspect)
        round_ = draw(count, 1, 1) < 0.5
        covered = torch.where(round_, a.square() + b.square(), torch.maximum(a, b)) < 1
        images = torch.where(covered[:, None], draw(count, channels, 1, 1), images)
    return images


def _radii(uniform: torch.Tensor) -> torch.Tensor:
    """Uniform draws to draws whose density is r^-3 between the two radii."""
    small, large = _RADII
    return (1 / small**2 - uniform * (1 / small**2 - 1 / large**2)).rsqrt()


def _coloured(white: torch.Tensor) -> torch.Tensor:
    """White noise to 1/f noise of the same variance, over every axis of the positions."""
    positions = white.shape[2:]
    axes = tuple(range(2, white.dim()))
    squares = torch.zeros(())
    for axis, length in enumerate(positions):
        squares = squares + torch.fft.fftfreq(length).reshape(along(axis, len(positions))).square()
    amplitude = 1 / squares.sqrt().clamp(min=1 / max(positions))  # the mean has that of the longest wave that fits
    amplitude = amplitude / amplitude.square().mean().sqrt()
    coloured: torch.Tensor = torch.fft.ifftn(torch.fft.fftn(white, dim=axes) * amplitude, dim=axes).real
    return coloured
