"""Noise switched on: what a marker stands for, drawn and applied to the values of a tensor.

`noise` defines the kinds. One draw holds

    for each element               dropout, gaussian-dropout, the kinds of uout, alpha-dropout
    for each sample and channel    feature-dropout, feature-alpha-dropout
    for each sample                drop-path

It is drawn outside the runtime: every kind, every opset, every data type and every execution provider has then the
same noise, and one seed gives the same bits everywhere. None of it is deployed: the paired
estimator runs it. Draws are float32; half-precision values are computed in float32 and rounded once, as torch does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.ir.runtime import Array

from .noise import SELU_SATURATION, Noise, NoiseKind

_OF_64_BITS = (np.random.SFC64, np.random.PCG64)  # in each number that they draw
_LEVELS = 1 << 16  # to which a probability is rounded
_CLOSE = 1e-3  # relative; where that moves it by more it is not rounded
_CHANNELS_TOGETHER = frozenset({NoiseKind.FEATURE_DROPOUT, NoiseKind.FEATURE_ALPHA_DROPOUT})
_DROPPING = frozenset({NoiseKind.DROPOUT, NoiseKind.FEATURE_DROPOUT, NoiseKind.DROP_PATH})


def apply_noise(noise: Noise, values: Array, rng: np.random.Generator | Sequence[np.random.Generator]) -> Array:
    """Puts noise on `values`, as a training run does.

    Args:
        noise: its kind and parameter.
        values: shape (N, C, ...), a float type; not changed.
        rng: where the draws come from; one for all, or one for each sample, which share out the first axis evenly.

    Returns:
        A new array of the same shape and type.
    """
    own = [rng] if isinstance(rng, np.random.Generator) else rng
    scale, offset = draw_by_sample(noise, (len(values) // len(own), *values.shape[1:]), own)
    wide = values.astype(np.result_type(values.dtype, np.float32), copy=False)
    noisy = wide * scale if offset is None else wide * scale + offset
    result: Array = noisy.astype(values.dtype, copy=False)
    return result


def draw_affine(
    noise: Noise, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """One draw of the noise as a map X = scale x + offset.

    Args:
        noise: its kind and parameter.
        shape: of x, (N, C, ...).
        rng: where the draws come from.

    Returns:
        The scale and the offset, of the shape of x with 1 along the axes that share a draw; no offset (None) for the
        multiplicative kinds.
    """
    drawn = _shape_of_draws(noise.kind, shape)
    if noise.is_multiplicative:
        return _factor(noise, drawn, rng), None
    return _alpha_map(noise.value, rng.random(drawn, dtype=np.float32))


def generators_of(seeds: Iterable[Sequence[int]]) -> list[np.random.Generator]:
    """One generator for each sample, from seeds of its own: no cut of the set changes a bit of its draws."""
    return [np.random.Generator(np.random.SFC64(_seed_words(seed))) for seed in seeds]


def _seed_words(seed: Sequence[int]) -> npt.NDArray[np.uint32] | list[int]:
    """The same seed as numpy takes it without looking at each number by itself; of larger numbers the numbers."""
    try:
        return np.array(seed, dtype=np.uint32)
    except OverflowError:
        return list(seed)


def draw_by_sample(
    noise: Noise, shape: tuple[int, ...], rngs: Sequence[np.random.Generator]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """The draws of several samples, each from its own generator.

    Args:
        noise: its kind and parameter.
        shape: of one sample, its rows on the first axis.
        rngs: one for each sample.

    Returns:
        As `draw_affine`, the samples along the first axis.
    """
    if noise.kind in _DROPPING:  # one pass over the draws of all samples
        rows, *own = _shape_of_draws(noise.kind, shape)
        return _kept_factor(noise, (rows * len(rngs), *own), rngs), None
    draws = [draw_affine(noise, shape, rng) for rng in rngs]
    offsets = [offset for _, offset in draws if offset is not None]
    return np.concatenate([scale for scale, _ in draws]), np.concatenate(offsets) if offsets else None


def _shape_of_draws(kind: NoiseKind, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of `values` with 1 along the axes that share a draw."""
    own = len(shape)
    if kind is NoiseKind.DROP_PATH:
        own = 1
    elif kind in _CHANNELS_TOGETHER:
        own = 2
    return shape[:own] + (1,) * (len(shape) - own)


def _factor(noise: Noise, shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """The n of X = n x."""
    if noise.kind is NoiseKind.UOUT:
        return np.asarray(1 + noise.value * (2 * rng.random(shape, dtype=np.float32) - 1), dtype=np.float32)
    if noise.kind is NoiseKind.UOUT_BERNOULLI:
        signs = 2 * (rng.random(shape, dtype=np.float32) < 0.5) - 1
        return np.asarray(1 + noise.value * signs, dtype=np.float32)
    if noise.kind in (NoiseKind.GAUSSIAN_DROPOUT, NoiseKind.UOUT_GAUSSIAN):
        deviation = np.float32(np.sqrt(noise.variance))
        return np.asarray(1 + deviation * rng.standard_normal(shape, dtype=np.float32), dtype=np.float32)
    return _kept_factor(noise, shape, [rng])


def _kept_factor(noise: Noise, shape: tuple[int, ...], rngs: Sequence[np.random.Generator]) -> npt.NDArray[np.float32]:
    """The n of the kinds that drop, 0 or 1 / p; each generator draws an even share of the first axis."""
    p = 1 - noise.value
    kept = _kept(p, math.prod(shape) // len(rngs), rngs)
    return np.multiply(kept.reshape(shape), np.float32(1 / p), dtype=np.float32)


def _kept(p: float, count: int, rngs: Sequence[np.random.Generator]) -> npt.NDArray[np.bool_]:
    """Which elements are kept, each with the probability p, to a thousandth of p and of 1 - p; shape (R, count).

    A number of 24 random bits costs as much as a small convolution: 16 do, and 1 where p is a half.
    """
    if p == 0.5:
        bits = _random_words(-(-count // 64), rngs).view(np.uint8)
        return np.unpackbits(bits, axis=1)[:, :count].view(np.bool_)
    below = round(p * _LEVELS)
    if abs(below / _LEVELS - p) > _CLOSE * min(p, 1 - p):
        return np.stack([rng.random(count, dtype=np.float32) for rng in rngs]) < p
    return np.asarray(_random_words(-(-count // 4), rngs).view(np.dtype("<u2"))[:, :count] < below)


def _random_words(count: int, rngs: Sequence[np.random.Generator]) -> npt.NDArray[np.uint64]:
    """Random bits, 64 in each number, of the byte order that is the same on every machine; shape (R, count)."""
    words = [
        rng.bit_generator.random_raw(count)
        if isinstance(rng.bit_generator, _OF_64_BITS)
        else rng.integers(0, 1 << 64, count, dtype=np.uint64)  # the same numbers, ten times slower for a few
        for rng in rngs
    ]
    return np.asarray(words).astype(np.dtype("<u8"), copy=False)


def _alpha_map(ratio: float, draws: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Scale and offset of each draw: (a, b) where the element is kept, (0, a alpha' + b) where it is dropped."""
    kept = draws < 1 - ratio
    a = ((1 - ratio) * (1 + ratio * SELU_SATURATION**2)) ** -0.5
    b = -a * SELU_SATURATION * ratio
    scale = np.where(kept, a, 0).astype(np.float32)
    offset = np.where(kept, b, a * SELU_SATURATION + b).astype(np.float32)
    return scale, offset
