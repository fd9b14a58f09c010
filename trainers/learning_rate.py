"""How the learning rate moves over a run: a linear warm-up, then half a cosine or steps.

rate(t) = peak (t + 1) / W                              t < W, the steps of the warm-up
cosine: peak (1 + cos(pi (t - W) / (T - W))) / 2        W <= t < T, all steps
step:   peak decay^k                                    k milestones at or before t
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal, cast, get_args

from vsfix.graph_passes.errors import InputError

ScheduleKind = Literal["cosine", "step"]


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a share of its peak.

    Attributes:
        kind: "cosine" or "step".
        warmup: the share of all steps in which the rate rises, in [0, 1).
        milestones: of "step": the shares of all steps at which the rate falls, ascending, in (0, 1).
        decay: of "step": what the rate is multiplied by at each of them, in (0, 1).

    Raises:
        InputError: a value of the wrong type or outside its range.
    """

    kind: ScheduleKind = "cosine"
    warmup: float = 0.05
    milestones: tuple[float, ...] = ()
    decay: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScheduleKind):
            raise InputError(f"training: schedule {self.kind!r} must be one of {', '.join(get_args(ScheduleKind))}")
        if not _is_share(self.warmup) and self.warmup != 0:
            raise InputError(f"training: warmup must be a number of at least 0 and below 1, not {self.warmup!r}")
        shares = self.milestones
        if not isinstance(shares, tuple) or not all(map(_is_share, shares)) or list(shares) != sorted(set(shares)):
            raise InputError(f"training: milestones must be ascending numbers between 0 and 1, not {shares!r}")
        if (self.kind == "step") != bool(shares):
            raise InputError("training: milestones and the schedule 'step' need each other")
        if not _is_share(self.decay):
            raise InputError(f"training: decay must be a number between 0 and 1, not {self.decay!r}")

    @classmethod
    def parse(cls, text: str, warmup: float) -> Schedule:
        """Reads `cosine`, or `step:SHARE,...[:DECAY]` as in `step:0.5,0.75` or `step:0.3,0.6,0.8:0.2`.

        Raises:
            InputError: another form, or a value outside its range.
        """
        kind, _, rest = text.partition(":")
        shares, _, decay = rest.partition(":")
        try:
            milestones = tuple(float(share) for share in shares.split(",")) if shares else ()
            return cls(cast("ScheduleKind", kind), warmup, milestones, float(decay) if decay else 0.1)
        except ValueError:
            raise InputError(f"schedule '{text}': write cosine, or step:SHARE,... as in step:0.5,0.75") from None

    def at(self, step: int, steps: int) -> float:
        """The share at a step, counted from 0, of `steps` in all; shares of steps are rounded down to whole ones."""
        warmup = int(self.warmup * steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.kind == "cosine":
            return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
        return float(self.decay ** bisect_right([int(share * steps) for share in self.milestones], step))


def _is_share(value: object) -> bool:
    """Whether a value is a number between 0 and 1, neither of them."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1
