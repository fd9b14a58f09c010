"""Which images make up each batch of an epoch, and which of them fall to whom."""

from __future__ import annotations

import numpy as np
import torch


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
