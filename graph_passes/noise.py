"""The multiplicative noise that a training run puts on a tensor: its kind, its parameter, its variance.

Every kind here is unbiased and multiplicative, X = n x with E[n] = 1, independent of x:

    dropout          n = a / p, a ~ Bernoulli(p), p = 1 - ratio     Var n = ratio / (1 - ratio)
    feature-dropout  the same, one draw for a whole channel         Var n = ratio / (1 - ratio)
    uout             n = 1 + r, r ~ U(-beta, beta)                  Var n = beta^2 / 3

Source: Li, Chen, Hu, Yang, "Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift",
CVPR 2019, arXiv 1801.05134.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .errors import InputError


class NoiseKind(Enum):
    """How the factor n is distributed."""

    DROPOUT = "dropout"
    FEATURE_DROPOUT = "feature-dropout"
    UOUT = "uout"


@dataclass(frozen=True)
class Noise:
    """One noise layer, switched on in training and off at inference.

    Attributes:
        kind: the distribution of the factor.
        value: the drop ratio in [0, 1) for the dropout kinds, the half width beta > 0 (at most 1) for Uout.

    Raises:
        InputError: the value is outside its range.
    """

    kind: NoiseKind
    value: float

    def __post_init__(self) -> None:
        if self.kind is NoiseKind.UOUT:
            if not 0 < self.value <= 1:
                raise InputError(f"uout:{self.value:g}: the half width beta must lie in (0, 1]")
        elif not 0 <= self.value < 1:
            raise InputError(f"{self.kind.value}:{self.value:g}: the drop ratio must lie in [0, 1)")

    @classmethod
    def parse(cls, text: str) -> Noise:
        """Reads `KIND:VALUE`, as in `dropout:0.5` or `uout:0.1`.

        Raises:
            InputError: another form, another kind, or a value outside its range.
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
    def variance(self) -> float:
        """Var n, the s^2 of the formulas."""
        if self.kind is NoiseKind.UOUT:
            return self.value**2 / 3
        return self.value / (1 - self.value)
