"""The seeds of a training run's random streams, each independent of all others.

What is drawn in an epoch or a step follows from the run's seed and their number alone, not from what was drawn before.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a stream is for. The numbers are part of what a seed means: they never change."""

    WEIGHTS = 0
    ORDER = 1
    NOISE = 2
    AUGMENTATION = 3
    DECODING = 4


def stream_seed(seed: int, stream: Stream, *position: int) -> int:
    """The seed of one stream.

    Args:
        seed: that of the run.
        stream: what for.
        position: where in the run: the epoch, the step, the process, as the stream needs it.

    Returns:
        A whole number of 64 bits.
    """
    # As spawn_key, because in the entropy itself trailing zeros make no difference.
    return int(np.random.SeedSequence(seed, spawn_key=(int(stream), *position)).generate_state(1, np.uint64)[0])
