"""The noise that a training run puts on a tensor: its kind, its parameter, its variance.

Most kinds are unbiased and multiplicative, X = n x with E[n] = 1, independent of x. They differ in the distribution of
n and in what shares one draw:

    dropout            n = a / p, a ~ Bernoulli(p), p = 1 - ratio     each element      Var n = ratio / (1 - ratio)
    feature-dropout    the same                                       each channel      Var n = ratio / (1 - ratio)
    drop-path          the same                                       each sample       Var n = ratio / (1 - ratio)
    gaussian-dropout   n ~ N(1, ratio / (1 - ratio))                  each element      Var n = ratio / (1 - ratio)
    uout               n = 1 + r, r ~ U(-beta, beta)                  each element      Var n = beta^2 / 3
    uout-bernoulli     n = 1 + r, r = beta or -beta, equally often    each element      Var n = beta^2
    uout-gaussian      n = 1 + r, r ~ N(0, beta^2)                    each element      Var n = beta^2

uout-gaussian and gaussian-dropout are one law under two parameters; noise that is found in a graph or measured on a
layer goes by the older name.

Two are not: SELU's dropout replaces what it drops by a constant and maps the whole so that mean 0 and variance 1 are
unchanged, X = a (x m + alpha' (1 - m)) + b, m ~ Bernoulli(1 - ratio), alpha' = -1.7581:

    alpha-dropout           one m for each element
    feature-alpha-dropout   one m for each channel of a sample

Sources: Li, Chen, Hu, Yang, "Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift",
CVPR 2019, arXiv 1801.05134 (dropout, uout); Tompson et al. 2015, arXiv 1411.4280 (feature-dropout); Huang et al. 2016,
"Deep Networks with Stochastic Depth", arXiv 1603.09382 (drop-path); Srivastava et al. 2014, JMLR 15, section 10
(gaussian-dropout); Klambauer et al. 2017, "Self-Normalizing Neural Networks", arXiv 1706.02515 (the alpha kinds).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from vsfix.graph_passes.errors import InputError


class NoiseKind(Enum):
    """The distribution of the noise and the elements that share a draw, as in the module's docstring."""

    DROPOUT = "dropout"
    FEATURE_DROPOUT = "feature-dropout"
    ALPHA_DROPOUT = "alpha-dropout"
    FEATURE_ALPHA_DROPOUT = "feature-alpha-dropout"
    GAUSSIAN_DROPOUT = "gaussian-dropout"
    DROP_PATH = "drop-path"
    UOUT = "uout"
    UOUT_BERNOULLI = "uout-bernoulli"
    UOUT_GAUSSIAN = "uout-gaussian"


UOUT_KINDS = frozenset({NoiseKind.UOUT, NoiseKind.UOUT_BERNOULLI, NoiseKind.UOUT_GAUSSIAN})
# The limit of SELU for x -> -inf: -scale * alpha of Klambauer et al. 2017, in the digits that torch writes.
SELU_SATURATION = -1.7580993408473766
_NOT_MULTIPLICATIVE = frozenset({NoiseKind.ALPHA_DROPOUT, NoiseKind.FEATURE_ALPHA_DROPOUT})


@dataclass(frozen=True)
class Noise:
    """One noise layer, switched on in training and off at inference.

    Attributes:
        kind: what it does.
        value: beta in (0, 1] for the kinds of Uout, the drop ratio in [0, 1) for every other kind.

    Raises:
        InputError: the value is outside its range.
    """

    kind: NoiseKind
    value: float

    def __post_init__(self) -> None:
        if self.kind in UOUT_KINDS:
            if not 0 < self.value <= 1:
                raise InputError(f"{self.kind.value}:{self.value:g}: beta must lie in (0, 1]")
        elif not 0 <= self.value < 1:
            raise InputError(f"{self.kind.value}:{self.value:g}: the drop ratio must lie in [0, 1)")

    @classmethod
    def parse(cls, text: str) -> Noise:
        """Reads `KIND:VALUE`, as in `dropout:0.5` or `uout:0.1`.

        Raises:
            InputError: another format, another kind, or a value outside its range.
        """
        name, _, value = text.partition(":")
        kinds = {kind.value: kind for kind in NoiseKind}
        if name not in kinds:
            raise InputError(f"noise '{text}': the kind must be one of {', '.join(kinds)}, as in dropout:0.5")
        try:
            number = float(value)
        except ValueError:
            raise InputError(f"noise '{text}': write KIND:VALUE, as in dropout:0.5") from None
        return cls(kinds[name], number)

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.value:g}"

    @property
    def is_multiplicative(self) -> bool:
        """Whether it is X = n x with E[n] = 1, so that the formulas of the paper hold."""
        return self.kind not in _NOT_MULTIPLICATIVE

    @property
    def variance(self) -> float:
        """Var n, the s^2 of the formulas; NaN for the kinds that are not multiplicative, which have no such n."""
        if not self.is_multiplicative:
            return math.nan
        if self.kind in UOUT_KINDS:
            return self.value**2 / (3 if self.kind is NoiseKind.UOUT else 1)
        return self.value / (1 - self.value)
