"""The exponential moving average of a network in training, of its weights and of the statistics of its BatchNorms.

    a <- d_n a + (1 - d_n) w        d_n = min(d, (1 + n) / (10 + n))        after n steps

The decay grows to d: with d from the start, the random weights of the beginning would be a part of a short run's
average, and statistics that mix them with later ones fit no network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Average = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], torch.Tensor | int], None]


def moving_average(decay: float) -> Average:
    """What `torch.optim.swa_utils.AveragedModel` calls as its `multi_avg_fn`.

    Args:
        decay: d, in (0, 1).
    """

    @torch.no_grad()
    def update(averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], steps: torch.Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(steps)) / (10 + int(steps)))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new.to(old.dtype), share)
            else:
                old.copy_(new)

    return update
