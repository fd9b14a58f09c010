"""The GPU while it is timed: once the runs are over its clocks fall, and nothing slows it down any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vsfix.pipeline.gpu_state import describe_gpu, load_of, throttling

from .latency import ROUNDS


@dataclass
class GpuWatch:
    """Looks at the GPU once in the rounds of each batch size, between two blocks of runs.

    Attributes:
        look: what the driver says; labels and values, nothing where there is no GPU.
        facts: clocks, throttle reasons, power, temperature and memory, by `while timing batch N`.
        slowed: batch sizes in which something slowed the GPU down, and what.
    """

    look: Callable[[], Mapping[str, str]] = describe_gpu
    facts: dict[str, str] = field(default_factory=dict)
    slowed: dict[int, str] = field(default_factory=dict)

    def after_round(self, batch_size: int, number: int) -> None:
        """To be called after each round of a batch size, `number` from 1 on; looks after half of them."""
        if number != ROUNDS // 2:
            return
        found = dict(self.look())
        if load := load_of(found):
            self.facts[f"while timing batch {batch_size}"] = load
        if reason := throttling(found):
            self.slowed[batch_size] = reason

    def notes(self) -> tuple[str, ...]:
        """What a person should know before trusting the times."""
        return tuple(
            f"the GPU was slowed down while batch {size} was timed: {reason}" for size, reason in self.slowed.items()
        )
