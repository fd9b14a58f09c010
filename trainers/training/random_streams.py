"""The random streams of a training run: their seeds, the order of the images, and the states of torch's generators.

What is drawn in an epoch or a step follows from the run's seed and their number alone, not from what was drawn before.
Each stream is independent of all others.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """The purpose of a stream. The numbers are part of what a seed means: they never change."""

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


def batch_rows(images: int, batch_size: int, seed: int, share: slice, parts: int) -> list[tuple[torch.Tensor, ...]]:
    """Shuffles the images and cuts them into batches; what fills no batch is left out.

    Args:
        images: how many there are.
        batch_size: of all processes together.
        seed: of the order.
        share: which images of a batch fall to this process.
        parts: in how many parts it takes them, one after another.

    Returns:
        For each step the rows of each part, int64, shape (N,), on the CPU.
    """
    steps = images // batch_size
    order = np.random.default_rng(seed).permutation(images)[: steps * batch_size]
    batches = torch.from_numpy(order).view(steps, batch_size)
    return [torch.chunk(batch, parts) for batch in batches[:, share]]


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states by device: "cpu", and "cuda" where `device` is a GPU; uint8, on the CPU."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def set_generator_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Puts back what `generator_states` gave."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
