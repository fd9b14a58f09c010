"""E[x^2] of a tensor from the graph alone, where a BatchNorm, or a BatchNorm and a ReLU, stand upstream of it.

A BatchNorm gives each channel the mean beta and the variance d^2, which epsilon keeps below gamma^2: by a factor of two
where the variance of its input is as small as epsilon. Taken as a Gaussian z,

    d^2 = gamma^2 var / (var + epsilon)
    E[z^2] = beta^2 + d^2
    E[max(z, 0)^2] = (beta^2 + d^2) Phi(beta / d) + beta d phi(beta / d)

Source: the second moment of a rectified Gaussian; Phi and phi are its distribution and density.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm
from vsfix.graph_passes.ir.graph import Tensor
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.noise.marker import is_dropout

COPIES = frozenset({"Identity", "Cast"})


def second_moment(tensor: Tensor, batch_norms: Mapping[int, BatchNorm]) -> Float64Array | None:
    """E[x^2] for each channel, as it was in training.

    Args:
        tensor: x.
        batch_norms: by the id of their node.

    Returns:
        Shape (C,); None where something else than a BatchNorm, or a BatchNorm and a ReLU, stands upstream.
    """
    rectified = False
    while len(tensor.inputs) == 1:
        node = tensor.inputs[0]
        batch_norm = batch_norms.get(id(node))
        if batch_norm is not None:
            moment = batch_norm.beta**2 + _deviation(batch_norm) ** 2
            return rectified_second_moment(batch_norm) if rectified else moment
        if node.op == "Relu":
            rectified = True
        elif node.op not in COPIES and not is_dropout(node):
            return None
        tensor = node.inputs[0]
    return None


def rectified_second_moment(batch_norm: BatchNorm) -> Float64Array:
    """E[max(z, 0)^2] with z ~ N(beta, d^2), shape (C,)."""
    mean, deviation = batch_norm.beta, _deviation(batch_norm)
    with np.errstate(divide="ignore", invalid="ignore"):
        a = np.where(deviation > 0, mean / deviation, np.copysign(np.inf, mean))
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in a])  # Phi(a)
    density = np.exp(-np.minimum(a**2, 1e4) / 2) / math.sqrt(2 * math.pi)  # phi(a)
    moment: Float64Array = (mean**2 + deviation**2) * below + mean * deviation * density
    return moment


def _deviation(batch_norm: BatchNorm) -> Float64Array:
    """d, shape (C,); 0 where no variance is stored."""
    variance = np.maximum(batch_norm.variance, 0)
    with np.errstate(invalid="ignore"):
        share = np.where(variance > 0, variance / (variance + batch_norm.epsilon), 0.0)
    return np.asarray(np.abs(batch_norm.gamma) * np.sqrt(share))
