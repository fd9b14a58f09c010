"""The inputs of a model, and whether arrays fit them. Nothing is cast: a silent cast would hide wrong preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.ir.runtime import Array


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: of the input.
        dtype: what it must hold; None where the model does not say.
        shape: one entry per axis, None for an axis of any size; None as a whole where the model does not say.
    """

    name: str
    dtype: npt.DTypeLike | None
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        sides = (
            "any shape" if self.shape is None else f"({', '.join('?' if s is None else str(s) for s in self.shape)})"
        )
        return sides if self.dtype is None else f"{np.dtype(self.dtype)} {sides}"


def check_feeds(specs: Sequence[InputSpec], inputs: Mapping[str, Array]) -> None:
    """Refuses arrays that the model does not take.

    Raises:
        DataError: naming the input, what it takes, and what was given.
    """
    names = [spec.name for spec in specs]
    unknown = [name for name in inputs if name not in names]
    if unknown:
        raise DataError(f"input '{unknown[0]}': the model has none of this name; it takes {', '.join(names) or 'none'}")
    for spec in specs:
        if spec.name not in inputs:
            raise DataError(f"input '{spec.name}': is missing; the model takes {spec}")
        array = inputs[spec.name]
        if not _fits(spec, array):
            raise DataError(f"input '{spec.name}': the model takes {spec}, but {array.dtype} {array.shape} was given")


def _fits(spec: InputSpec, array: Array) -> bool:
    """Whether dtype, rank and every fixed side are right."""
    if spec.dtype is not None and array.dtype != np.dtype(spec.dtype):
        return False
    if spec.shape is None:
        return True
    if len(spec.shape) != array.ndim:
        return False
    return all(side is None or side == given for side, given in zip(spec.shape, array.shape, strict=True))
