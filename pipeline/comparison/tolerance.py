"""The bounds that a candidate must reach, by the precision that it computes in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vsfix.graph_passes.errors import InputError

MAX_CV = 0.025  # standard deviation over mean of latencies; past it the machine was not quiet


@dataclass(frozen=True)
class Tolerance:
    """The bounds that a candidate must reach.

    Attributes:
        min_snr_db: signal to noise of every output, in dB.
        min_agreement: share of samples with the same top-1 decision, in [0, 1].
        max_accuracy_loss: by how much top-1 may be below the reference's, in percentage points.

    Raises:
        InputError: a value outside its range.
    """

    min_snr_db: float = 80.0
    min_agreement: float = 0.999
    max_accuracy_loss: float = 0.1

    def __post_init__(self) -> None:
        if not np.isfinite(self.min_snr_db):
            raise InputError(f"--min-snr {self.min_snr_db}: must be a number of dB")
        if not 0 <= self.min_agreement <= 1:
            raise InputError(f"--min-agreement {self.min_agreement}: must lie in [0, 1]")
        if not 0 <= self.max_accuracy_loss <= 100:
            raise InputError(f"--max-accuracy-loss {self.max_accuracy_loss}: must lie in [0, 100] percentage points")


# A layer that rounds to b bits of fraction has a noise 6 b + 11 dB below its signal, and twenty layers 13 dB more: TF32
# and float16 have 10 bits, bfloat16 7. For the eight bits of a quantised network no rule of rounding holds, since its
# ranges cut: there the accuracy decides.
TOLERANCES = {
    "fp32": Tolerance(),
    "tf32": Tolerance(50.0, 0.995, 0.1),
    "fp16": Tolerance(50.0, 0.995, 0.1),
    "bf16": Tolerance(25.0, 0.98, 0.5),
    "int8": Tolerance(20.0, 0.95, 1.0),
    "fp8": Tolerance(20.0, 0.95, 1.0),
}
_FINEST_FIRST = tuple(TOLERANCES)


@dataclass(frozen=True)
class GivenTolerance:
    """The bounds that the user demands; None for those that the precision of the models decides."""

    min_snr_db: float | None = None
    min_agreement: float | None = None
    max_accuracy_loss: float | None = None

    def resolve(self, *precisions: str) -> Tolerance:
        """The tolerance for models of these precisions: that of the coarsest, but for what was given."""
        tolerance = TOLERANCES[max(precisions, key=_FINEST_FIRST.index)]
        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(tolerance, **given)
