"""The rule by which a refinement takes its steps: from what a step costs, never from a clock.

A step of Adam costs a forward and twice as much back, and what the loss of the outputs takes. Whatever costs next to
nothing gets more steps; what costs more than `LARGEST` in all is not refined unless somebody asks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS = (100, 2000)  # of a network that costs much, and of one that costs next to nothing
CHEAP = 2e11  # multiplications of all steps, up to which more than the fewest are made
LARGEST = 4e12  # multiplications of all steps; two minutes or so on one core
BATCH = 64
_BACKWARD = 3  # a step costs a forward and twice as much again
_LOSS = 50  # multiplications in the time that a step takes for one number of an output
_RUN_BYTES = 64 << 20  # of the activations of one run, which are held until its gradient is known


@dataclass(frozen=True)
class RefinementCost:
    """The cost of a refinement.

    Attributes:
        forward: multiplications of one sample's forward.
        activations: the numbers that it makes.
        outputs: how many of those are compared.
        samples: N.
    """

    forward: float
    activations: float
    outputs: float
    samples: int

    @property
    def step(self) -> float:
        """The multiplications of one step."""
        return float(min(BATCH, self.samples) * (_BACKWARD * self.forward + _LOSS * self.outputs))

    @property
    def steps(self) -> int:
        """The steps of Adam."""
        return int(np.clip(CHEAP / max(self.step, 1.0), *STEPS))

    @property
    def too_much(self) -> float | None:
        """The multiplications of all steps, where those are more than is spent unasked; else None."""
        cost = self.steps * self.step
        return cost if cost > LARGEST else None

    @property
    def run_size(self) -> int:
        """Samples of one run forward and back."""
        return int(np.clip(_RUN_BYTES / (4 * max(self.activations, 1.0)), 1, BATCH))
