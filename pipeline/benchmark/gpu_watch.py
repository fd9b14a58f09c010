"""The GPU under load: once the runs are over its clocks fall, and nothing slows it down any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from vsfix.pipeline.host.gpu_state import describe_gpu, load_of, throttling


@dataclass
class GpuWatch:
    """Looks at the GPU once for each batch size, behind the runs that are timed, while more of them go on.

    Attributes:
        look: what the driver says; labels and values, nothing where there is no GPU.
        facts: clocks, throttle reasons, power, temperature and memory, by `running batch N`.
        slowed: batch sizes in which something slowed the GPU down, and what.
    """

    look: Callable[[], Mapping[str, str]] = describe_gpu
    facts: dict[str, str] = field(default_factory=dict)
    slowed: dict[int, str] = field(default_factory=dict)

    def during(self, batch_size: int, run: Callable[[], object]) -> None:
        """Looks, and calls `run` again and again for as long as that takes."""
        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(self.look)
            while not looking.done():
                run()
        found = dict(looking.result())
        if load := load_of(found):
            self.facts[f"running batch {batch_size}"] = load
        if reason := throttling(found):
            self.slowed[batch_size] = reason

    def notes(self) -> tuple[str, ...]:
        """What a person should know before trusting the times."""
        return tuple(
            f"the GPU was slowed down while batch {size} ran: {reason}" for size, reason in self.slowed.items()
        )
