"""Finds out which noise a layer makes, by running it: for layers whose noise is written by hand.

Some layers draw their noise themselves, in training only: DropPath, StochasticDepth, GaussianDropout. What they do is
measured on an input of random numbers whose every axis is longer than 1:

    n = y_train / y_eval    over many runs; a layer whose n depends on the input is of no known kind
    sharing                 the axes along which n is constant tell an element's draw from a channel's and a sample's
    {0, 1 / p}              n takes these two values, 0 as often as 1 - p says: dropout, feature-dropout, drop-path
    {1 - b, 1 + b}          n takes these two values, equally often: uout-bernoulli
    uniform, normal         n has mean 1 and the moments of U(1 - beta, 1 + beta) or of N(1, s2): uout, gaussian-dropout

Draws must be independent of each other, which keeps dropped blocks and masks that one batch shares from being taken for
any of these. A last run on the layer's real input must show the same noise. Whatever fails is refused with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vsfix.graph_passes.errors import VsfixError, first_line
from vsfix.graph_passes.noise.noise import Noise, NoiseKind

_RUNS = 32
_LENGTHS = (128, 6, 5, 4, 3, 2)
_SIGMAS = 6.0  # how many standard errors a moment may be off: dozens of them are compared for each layer
_ROUNDING = 1e-5  # of a quotient of two float32 values, relative


@dataclass(frozen=True)
class Identification:
    """The noise of a layer.

    Attributes:
        noise: its kind and parameter; None where there is none, or none of a known kind.
        reason: why the kind is not known; empty where it is, or where there is no noise.
    """

    noise: Noise | None
    reason: str = ""


class _UnknownNoiseError(VsfixError):
    """The noise is of no kind that has a name here; never leaves this module."""


def identify_noise(layer: nn.Module, inputs: Sequence[torch.Tensor]) -> Identification:
    """Runs a layer many times in training mode and names its noise.

    The caller keeps the state of the random generators, and of the layer should it have any.

    Args:
        layer: takes one tensor and returns one of the same shape; its training flag is changed.
        inputs: what it really gets, once for each time that it is called; float32, batch first.

    Returns:
        The one noise that fits all inputs, or why there is none.
    """
    try:
        found = {rank: _measure(layer, rank) for rank in sorted({x.dim() for x in inputs})}
        noises = set(found.values())
        if len(noises) != 1:
            raise _UnknownNoiseError("its noise differs between its calls")
        noise = noises.pop()
        if noise is not None:
            for x in inputs:
                _require_same_noise(noise, _factors(layer, x, 3))
    except _UnknownNoiseError as error:
        return Identification(None, str(error))
    return Identification(noise)


def _measure(layer: nn.Module, rank: int) -> Noise | None:
    """The noise that a layer makes on a tensor of some rank."""
    if not 1 <= rank <= len(_LENGTHS):
        raise _UnknownNoiseError(f"its input has rank {rank}")
    torch.manual_seed(0)
    x = (torch.rand(_LENGTHS[:rank]) + 0.5) * (2 * torch.randint(2, _LENGTHS[:rank]) - 1)
    factors = _factors(layer, x, _RUNS)
    if bool(factors.isnan().any()):
        raise _UnknownNoiseError("it returns zeros in eval mode, which show no factor")
    if bool(((factors - 1).abs() <= _ROUNDING).all()):
        return None
    own = _own_axes(factors)
    if own < rank:
        draws, x = factors.flatten(own + 1)[..., 0], x.flatten(own)[..., 0]  # (runs, N) or (runs, N, C)
    else:
        draws = factors
    _require_independent(draws, x)
    nonzero = draws[draws != 0]
    if nonzero.numel() and float(nonzero.max() - nonzero.min()) <= _ROUNDING * float(nonzero.abs().max()):
        return _bernoulli(draws, float(nonzero.mean()), (rank, own))
    if own < rank:
        raise _UnknownNoiseError("its factors are neither 0 nor 1/p")
    return _continuous(layer, draws.flatten())


def _factors(layer: nn.Module, x: torch.Tensor, runs: int) -> torch.Tensor:
    """y_train / y_eval in float64, shape (runs, *x.shape); NaN where both are 0."""
    off = _run(layer.eval(), x)
    on = torch.stack([_run(layer.train(), x) for _ in range(runs)])
    factors = on / off
    if bool((factors.isnan() & ~((on == 0) & (off == 0))).any() or factors.isinf().any()):
        raise _UnknownNoiseError("its noise is not a factor on what it returns in eval mode")
    return factors


def _run(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    try:
        y = layer(x.clone())
    except Exception as error:  # a forward is foreign code: it may raise anything
        raise _UnknownNoiseError(f"it can't be tried out: {first_line(error)}") from error
    if not isinstance(y, torch.Tensor) or y.shape != x.shape:
        raise _UnknownNoiseError("it does not return one tensor of the shape of its input")
    return y.double()


def _own_axes(factors: torch.Tensor) -> int:
    """The number of leading axes of the input, the batch first, with draws of their own; the others must share them."""
    constant = [_is_constant(factors, axis) for axis in range(factors.dim())]
    own = constant.index(True) if True in constant else len(constant)
    if own < 2 or not all(constant[own:]):
        raise _UnknownNoiseError("what shares a draw is neither an element, nor a channel, nor a sample")
    if 3 < own < len(constant):
        raise _UnknownNoiseError("positions share a draw along some axes and not along others")
    return own - 1


def _is_constant(factors: torch.Tensor, axis: int) -> bool:
    return bool(((factors - factors.narrow(axis, 0, 1)).nan_to_num(0).abs() <= _ROUNDING * factors.abs().max()).all())


def _require_independent(draws: torch.Tensor, x: torch.Tensor) -> None:
    """Draws must not go with their neighbours along any axis, nor with the values that they meet."""
    limit = 2 * _SIGMAS / math.sqrt(draws.numel())
    values = x.double().expand_as(draws)
    squares = (draws - draws.mean()) ** 2
    pairs = [(draws, values), (draws, values.abs()), (squares, values), (squares, values.abs())]
    if any(abs(_correlation(one, other)) > limit for one, other in pairs):
        raise _UnknownNoiseError("its noise depends on the values of its input")
    for axis in range(draws.dim()):
        others = draws.shape[axis] - 1
        if abs(_correlation(draws.narrow(axis, 0, others), draws.narrow(axis, 1, others))) > limit:
            raise _UnknownNoiseError("its draws depend on each other")


def _correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one - one.mean(), other - other.mean()
    product = (one * other).mean() / torch.sqrt((one**2).mean() * (other**2).mean()).clamp_min(1e-300)
    return float(product)


def _bernoulli(draws: torch.Tensor, scale: float, rank_and_own: tuple[int, int]) -> Noise:
    """The dropout whose remaining elements are multiplied by `scale` = 1 / p."""
    ratio = round(1 - 1 / scale, 7) if scale >= 1 else 0.0
    dropped = float((draws == 0).double().mean())
    error = math.sqrt(max(ratio * (1 - ratio), 0.0) / draws.numel())
    if ratio <= 0 or abs(dropped - ratio) > _SIGMAS * error:
        raise _UnknownNoiseError(f"it drops {dropped:.3g} and scales by {scale:.4g}, which changes the mean")
    rank, own = rank_and_own
    if own == rank:
        return Noise(NoiseKind.DROPOUT, ratio)
    return Noise(NoiseKind.DROP_PATH if own == 1 else NoiseKind.FEATURE_DROPOUT, ratio)


def _continuous(layer: nn.Module, draws: torch.Tensor) -> Noise:
    """A form of Uout, or Gaussian dropout: by its two values, or by the first four moments."""
    error = _SIGMAS / math.sqrt(draws.numel())
    beta = float((draws - 1).abs().max())
    if beta <= 1 + _ROUNDING and bool(((draws - 1).abs() >= beta - _ROUNDING).all()):
        if abs(float((draws > 1).double().mean()) - 0.5) > error / 2:
            raise _UnknownNoiseError("its noise changes the mean")
        return Noise(NoiseKind.UOUT_BERNOULLI, min(_declared(layer, beta, error), 1.0))
    deviation = float(draws.std(correction=0))
    z = (draws - 1) / deviation
    mean, skewness, kurtosis = (float((z**power).mean()) for power in (1, 3, 4))
    if abs(mean) > error:
        raise _UnknownNoiseError("its noise changes the mean")
    # Standard errors of the moments of a normal distribution: sqrt(15 / n) and sqrt(96 / n) for z^3 and z^4.
    if abs(skewness) <= 4 * error and abs(kurtosis - 3) <= 10 * error:
        estimate = deviation**2 / (1 + deviation**2)
        return Noise(NoiseKind.GAUSSIAN_DROPOUT, _declared(layer, estimate, error))
    is_uniform = abs(skewness) <= 4 * error and abs(kurtosis - 1.8) <= 10 * error
    if is_uniform and abs(deviation * math.sqrt(3) / beta - 1) <= 4 * error and beta <= 1 + _ROUNDING:
        return Noise(NoiseKind.UOUT, min(_declared(layer, beta, error), 1.0))
    raise _UnknownNoiseError("its factors are neither 0 and 1/p, nor uniform, nor normal")


def _declared(layer: nn.Module, estimate: float, error: float) -> float:
    """The parameter as the layer itself holds it, where one of its numbers fits the estimate; else the estimate."""
    numbers = [float(value) for value in vars(layer).values() if isinstance(value, float)]
    forms = [form for v in numbers for form in (v, 1 - v, v / (1 + v) if v > -1 else v, v**2 / (1 + v**2))]
    fitting = [form for form in forms if 0 < form <= 1 and abs(form - estimate) <= 2 * error * estimate]
    return min(fitting, key=lambda form: abs(form - estimate)) if fitting else float(f"{estimate:.4g}")


def _require_same_noise(noise: Noise, factors: torch.Tensor) -> None:
    """Refuses factors, on a real input, that `noise` would not make; NaN marks what was 0."""
    seen = factors[~factors.isnan()]
    if noise.kind is NoiseKind.UOUT_BERNOULLI:
        fits = ((seen - 1).abs() - noise.value).abs() <= 10 * _ROUNDING
    elif noise.kind is NoiseKind.UOUT:
        fits = (seen - 1).abs() <= noise.value + _ROUNDING
    elif noise.kind is NoiseKind.GAUSSIAN_DROPOUT:
        fits = (seen - 1).abs() <= 8 * math.sqrt(noise.variance)
    else:
        scale = 1 + noise.variance
        fits = (seen == 0) | ((seen - scale).abs() <= 10 * _ROUNDING * scale)
    shared = {NoiseKind.DROP_PATH: 2, NoiseKind.FEATURE_DROPOUT: 3}.get(noise.kind)
    grouped = factors.flatten(shared) if shared is not None and factors.dim() > shared else factors.unsqueeze(-1)
    low, high = grouped.nan_to_num(math.inf).amin(-1), grouped.nan_to_num(-math.inf).amax(-1)
    if not bool(fits.all()) or bool((high - low > 10 * _ROUNDING * high.abs()).any()):
        raise _UnknownNoiseError(f"it looks like {noise} on random numbers, but not on its real input")
