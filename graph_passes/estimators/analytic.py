"""analytic: the deployed statistics from the closed forms of the paper, without any data.

    directly downstream of noise      v = (var + mean^2) / (1 + s2) - mean^2
    downstream of a linear map        v = var - a      with a = s2 sum_i w_i^2 E[x_i^2]    (`linear_noise`)
    both, one noise after the other   v = (var + mean^2) / (1 + s2) - mean^2 - a

The mean is unchanged, since E[n] = 1. Exact for the first BatchNorm downstream of the noise, as far as the stored
statistics are exact and its input is Gaussian; blind to what the noise does downstream of the next non-linearity or
BatchNorm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm, find_modules
from vsfix.graph_passes.ir.graph import Tensor
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.noise.analysis import Distance, NoisePaths, analyse_noise
from vsfix.graph_passes.noise.marker import is_dropout
from vsfix.graph_passes.statistics.estimate import Estimate
from vsfix.graph_passes.statistics.shift import geometric_mean, joint_variance, predicted_shift_ratio

from .linear_noise import LinearNoiseReader
from .second_moment import COPIES

# A closed form that takes away more than this of the variance contradicts the stored one.
LEAST_RATIO = 0.02


def analytic(
    graph: gs.Graph, layers: Sequence[str], *, alone: bool = False
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Estimates from the graph alone.

    Args:
        graph: not changed; its markers say where the noise was.
        layers: names of the BatchNorms to estimate.
        alone: only those that no noise reaches by another path, so that the closed form is the whole shift.

    Returns:
        The estimates, and for each of the other layers the reason why there is none, by name.
    """
    reader = LinearNoiseReader(graph)
    noise_map = analyse_noise(graph)
    estimates: dict[str, Estimate] = {}
    reasons: dict[str, str] = {}
    for batch_norm in find_modules(graph):
        if batch_norm.name not in layers:
            continue
        paths = noise_map.reaching[batch_norm.name]
        ratio, reason = _ratio(batch_norm, paths, reader)
        if batch_norm.others:
            reason = "it is used several times, and its statistics hold all of its inputs together: no closed form"
        if alone and paths.at(Distance.DOWNSTREAM):
            reason = "noise arrives through a non-linearity too"
        if reason:
            reasons[batch_norm.name] = reason
        else:
            estimates[batch_norm.name] = _estimate(batch_norm, ratio)
    return estimates, reasons


def _ratio(batch_norm: BatchNorm, paths: NoisePaths, reader: LinearNoiseReader) -> tuple[Float64Array, str]:
    """v / var for each channel, or the reason why no closed form holds."""
    nothing = np.ones(batch_norm.channels)
    if not paths:
        return nothing, "no noise reaches it"
    direct = [path.source.noise for path in paths.at(Distance.DIRECT)]
    if not all(noise.is_multiplicative for noise in direct):
        return nothing, f"no closed form for {direct[0]}"
    ratio = predicted_shift_ratio(batch_norm, joint_variance(direct)) if direct else nothing
    mapped = {path.source.name for path in paths.at(Distance.LINEAR)}
    if not mapped:
        return (ratio, "") if direct else (nothing, "the noise comes through a non-linearity: no closed form")
    found = reader.of(_upstream_of_markers(batch_norm.input))
    if found.obstacle or found.sources != mapped:
        return nothing, found.obstacle or "the noise comes through a map without a closed form"
    with np.errstate(divide="ignore", invalid="ignore"):
        return ratio - found.variance / batch_norm.variance, ""


def _upstream_of_markers(tensor: Tensor) -> Tensor:
    """The tensor that the noise directly upstream is put on."""
    while len(tensor.inputs) == 1 and (is_dropout(tensor.inputs[0]) or tensor.inputs[0].op in COPIES):
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _estimate(batch_norm: BatchNorm, ratio: Float64Array) -> Estimate:
    """The estimate; a channel that contradicts its closed form is unchanged."""
    with np.errstate(invalid="ignore"):
        valid = np.isfinite(ratio) & (ratio >= LEAST_RATIO) & (batch_norm.variance > 0)
    return Estimate(
        mean=batch_norm.mean,
        variance=np.where(valid, batch_norm.variance * np.where(valid, ratio, 1), batch_norm.variance),
        invalid=~valid,
        shift=geometric_mean(np.where(valid, ratio, np.nan)),
        interval=None,
        channel_intervals=None,
        samples=0,
    )
