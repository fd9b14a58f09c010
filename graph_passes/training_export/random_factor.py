"""The kind of noise of an expression Y = A x + B, from the distribution of A and B and the shape of the draws.

    A in {0, 1/keep}, B = 0, E[A] = 1                   dropout, drop-path or feature-dropout with the ratio 1 - keep
    A uniform in (1 - beta, 1 + beta), B = 0            uout with the half width beta
    A normal with mean 1 and variance s^2, B = 0        gaussian-dropout with the ratio s^2 / (1 + s^2)
    A in {0, a}, B in {a alpha' + b, b}                 alpha-dropout, feature-alpha-dropout with the ratio 1 - keep
                 a = 1 / sqrt(keep (1 + (1 - keep) alpha'^2)), b = -a alpha' (1 - keep), alpha' = -1.7581

One draw for each element of x makes the first of each line; one for each of the first two axes makes the feature kinds,
one for each of the first axis drop-path. Source of the last line: Klambauer, Unterthiner, Mayr, Hochreiter,
"Self-Normalizing Neural Networks", NeurIPS 2017, arXiv 1706.02515.
"""

from __future__ import annotations

import math

from vsfix.graph_passes.ir.graph import Tensor
from vsfix.graph_passes.ir.shapes import Dimension, SymbolicShapes
from vsfix.graph_passes.noise.noise import SELU_SATURATION, Noise, NoiseKind

from .random_expression import AffineExpression
from .random_variable import Draw, DrawKind, RandomVariable

# Constants of half precision are off by up to 5e-4.
_TOLERANCE = 1e-3


def recognise(expression: AffineExpression, shapes: SymbolicShapes) -> Noise | str:
    """The noise that Y = A x + B puts on x, or the reason why it is none that vsfix knows.

    Args:
        expression: with a base and at least one draw.
        shapes: of the graph.
    """
    draws = expression.draws
    if expression.base is None or not draws:
        raise ValueError("only a tensor with noise on it can be recognised")
    if expression.factor.draw is None:
        return "additive noise; vsfix knows only noise that multiplies, and leaves this in the graph"
    if any(draw is not draws[0] for draw in draws):
        return "the factor and the offset are drawn apart"
    shared = _shared_axes(draws[0], expression.base, shapes)
    if expression.offset.draw is not None:
        return _recognise_alpha(expression.factor, expression.offset, shared)
    if not _close(expression.offset.intercept, 0.0):
        return f"the constant {expression.offset.intercept:g} is added to it"
    return _recognise_factor(expression.factor, shared)


def _recognise_factor(factor: RandomVariable, shared: NoiseKind | str) -> Noise | str:
    """The kinds that multiply; `shared` is the dropout kind that the shape of the draws makes, or a reason."""
    if not _close(factor.mean, 1.0):
        return f"the mean of the noise is {factor.mean:.4g}, not 1: it is not scaled, or not where vsfix looks"
    if factor.draw is None or isinstance(shared, str):
        return str(shared)
    if factor.draw.kind is DrawKind.BERNOULLI:
        return _recognise_mask(factor, shared)
    if shared is not NoiseKind.DROPOUT:
        return f"{factor.draw.kind.value} noise that several elements share"
    if factor.draw.kind is DrawKind.UNIFORM:
        beta = abs(factor.slope) / 2
        return Noise(NoiseKind.UOUT, _rounded(beta)) if 0 < beta <= 1 else f"uniform noise of half width {beta:g}"
    variance = factor.slope**2
    return Noise(NoiseKind.GAUSSIAN_DROPOUT, _rounded(variance / (1 + variance)))


def _recognise_mask(factor: RandomVariable, kind: NoiseKind) -> Noise | str:
    """A factor with two values, of mean 1: one of them is 0, or both are equally likely."""
    probability, levels = factor.draw.probability if factor.draw else math.nan, factor.levels or (math.nan, math.nan)
    if _close(levels[0], 0.0):
        return Noise(kind, _rounded(1 - probability))
    if _close(levels[1], 0.0):
        return Noise(kind, _rounded(probability))
    beta = abs(levels[1] - levels[0]) / 2
    if kind is NoiseKind.DROPOUT and _close(probability, 0.5) and beta <= 1:
        return Noise(NoiseKind.UOUT_BERNOULLI, _rounded(beta))
    return f"a factor of {levels[0]:.4g} or {levels[1]:.4g}, neither of them 0"


def _recognise_alpha(factor: RandomVariable, offset: RandomVariable, shared: NoiseKind | str) -> Noise | str:
    """The alpha kinds: factor and offset with two values each, of the same draw."""
    if factor.levels is None or offset.levels is None or factor.draw is None:
        return "noise that is added and multiplied at once"
    (dropped, kept), (low, high), keep = factor.levels, offset.levels, factor.draw.probability
    if _close(kept, 0.0):
        dropped, kept, low, high, keep = kept, dropped, high, low, 1 - keep
    scale = 1 / math.sqrt(keep * (1 + (1 - keep) * SELU_SATURATION**2))
    shift = -scale * SELU_SATURATION * (1 - keep)
    wanted = (0.0, scale, scale * SELU_SATURATION + shift, shift)
    if not all(_close(found, value) for found, value in zip((dropped, kept, low, high), wanted, strict=True)):
        return "noise that is added and multiplied at once, but is not alpha dropout"
    kinds = {
        NoiseKind.DROPOUT: NoiseKind.ALPHA_DROPOUT,
        NoiseKind.FEATURE_DROPOUT: NoiseKind.FEATURE_ALPHA_DROPOUT,
    }
    if isinstance(shared, str):
        return shared
    return Noise(kinds[shared], _rounded(1 - keep)) if shared in kinds else "alpha dropout of whole samples"


def _shared_axes(draw: Draw, base: Tensor, shapes: SymbolicShapes) -> NoiseKind | str:
    """The dropout kind that the axes with a draw of their own make, or the reason why they make none."""
    if shapes.are_equal(draw.tensor, base):
        return NoiseKind.DROPOUT
    drawn, shape = shapes.of(draw.tensor), shapes.of(base)
    if drawn is None or shape is None:
        return "the shape of the random numbers is unknown from the file"
    if len(drawn) > len(shape):
        return "the random numbers have more axes than what they multiply"
    drawn = (1,) * (len(shape) - len(drawn)) + drawn
    own = [_is_own(one, other) for one, other in zip(drawn, shape, strict=True)]
    if None in own:
        return f"unknown which elements share a draw: the draws have the shape {_text(drawn)}, the data {_text(shape)}"
    # An axis of length 1 has one draw for each of its elements whatever the others have.
    single = [dimension == 1 for dimension in shape]
    for kind, axes in ((NoiseKind.DROPOUT, len(shape)), (NoiseKind.DROP_PATH, 1), (NoiseKind.FEATURE_DROPOUT, 2)):
        wanted = [axis < axes for axis in range(len(shape))]
        if all(one or have is want for have, want, one in zip(own, wanted, single, strict=True)):
            return kind
    return f"the random numbers have the shape {_text(drawn)}: vsfix knows no noise that elements share like this"


def _is_own(drawn: Dimension, dimension: Dimension) -> bool | None:
    """Whether each position of an axis has a draw of its own; None where this is unknown."""
    if drawn == dimension:
        return drawn != 1
    return False if drawn == 1 else None


def _text(shape: tuple[Dimension, ...]) -> str:
    """A shape for a message."""
    return f"({', '.join('?' if str(entry).endswith('?') else str(entry) for entry in shape)})"


def _close(found: float, wanted: float) -> bool:
    """Whether two numbers are equal but for rounding."""
    return abs(found - wanted) <= _TOLERANCE * max(1.0, abs(wanted))


def _rounded(value: float) -> float:
    """A parameter without the rounding of float32: 0.3, not 0.30000001192."""
    return float(f"{value:.6g}")
