"""Noise that really happens: what a marker stands for, drawn and applied to the values of a tensor.

    dropout          n = a / p, a ~ Bernoulli(p), for each element
    feature-dropout  the same, one draw for each sample and channel
    uout             n = 1 + r, r ~ U(-beta, beta), for each element

It is drawn outside the runtime: every kind, every opset, every data type and every execution provider has then the
same noise, and one seed gives the same bits everywhere. Nothing here is ever deployed: it is what the paired estimator
runs.
"""

from __future__ import annotations

import numpy as np

from .inference import Array
from .noise import Noise, NoiseKind


def apply_noise(noise: Noise, values: Array, rng: np.random.Generator) -> Array:
    """Multiplies `values` by noise.

    Args:
        noise: its kind and parameter.
        values: shape (N, C, ...), a float type; not changed.
        rng: where the draws come from.

    Returns:
        A new array of the same shape and type.
    """
    shape = values.shape
    if noise.kind is NoiseKind.UOUT:
        factor = 1 + noise.value * (2 * rng.random(shape, dtype=np.float32) - 1)
    else:
        if noise.kind is NoiseKind.FEATURE_DROPOUT:
            shape = values.shape[:2] + (1,) * (values.ndim - 2)
        keep = 1 - noise.value
        factor = (rng.random(shape, dtype=np.float32) < keep) / np.float32(keep)
    noisy: Array = values * factor.astype(values.dtype)
    return noisy
