"""The distance of each BatchNorm of a network in training from what it will see when it is deployed.

    shift ratio   r_c = real_var / running_var of a channel c; of a BatchNorm, the geometric mean over its channels
    mismatch      the variance ratio of the paper's Figure 1: max(r_c, 1 / r_c), the geometric mean over the channels

real_var is the variance of the BatchNorm's input over training images, noise off, each BatchNorm normalising with what
it has stored: what happens on the day of the deployment. Moments are merged in float64 (Chan, Golub, LeVeque 1983).

Source: Li, Chen, Hu, Yang, CVPR 2019, arXiv 1801.05134, Figure 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from .evaluation import eval_mode


@dataclass(frozen=True)
class BatchNormShift:
    """One BatchNorm after one epoch.

    Attributes:
        epoch: counted from 1.
        batch_norm: the name of the module.
        shift_ratio: 1 is no shift; below 1, the variance that is stored is too large.
        mismatch: the variance ratio, at least 1.
    """

    epoch: int
    batch_norm: str
    shift_ratio: float
    mismatch: float


def measure_shift(module: nn.Module, batches: Iterable[torch.Tensor], epoch: int) -> tuple[BatchNormShift, ...]:
    """Measures all BatchNorms that keep running statistics, in the order in which they run.

    Args:
        module: the network; its modes and statistics are afterwards as they were.
        batches: preprocessed training images on its device, shape (N, C, h, w).
        epoch: what the rows say.
    """
    taps = {
        name: _Tap(part)
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_var is not None
    }
    order: list[str] = []

    def take(name: str, inputs: torch.Tensor) -> None:
        if name not in order:
            order.append(name)
        taps[name].add(inputs)

    handles = [
        tap.batch_norm.register_forward_pre_hook(lambda _, inputs, name=name: take(name, *inputs))
        for name, tap in taps.items()
    ]
    try:
        # A compiled forward knows nothing of hooks that came after it.
        with eval_mode(module), torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            for images in batches:
                module(images)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(taps[name].shift(name, epoch) for name in order)


class _Tap:
    """The moments of what one BatchNorm is given."""

    def __init__(self, batch_norm: nn.modules.batchnorm._BatchNorm) -> None:
        self.batch_norm = batch_norm
        self.count = 0
        self.mean = self.centred = torch.zeros(())

    def add(self, x: torch.Tensor) -> None:
        """Takes a batch in, (N, C, *positions)."""
        values = x.detach().double().transpose(0, 1).flatten(1)  # (C, N * positions)
        count = values.shape[1]
        mean = values.mean(1)
        centred = ((values - mean[:, None]) ** 2).sum(1)
        total = self.count + count
        apart = mean - self.mean
        self.mean = self.mean + apart * (count / total)
        self.centred = self.centred + centred + apart**2 * (self.count * count / total)
        self.count = total

    def shift(self, name: str, epoch: int) -> BatchNormShift:
        """The row of the log; a channel without a variance, really or as stored, is left out."""
        stored = self.batch_norm.running_var
        assert stored is not None
        real = self.centred / self.count
        valid = (real > 0) & (stored > 0)
        logs = torch.log(real[valid] / stored.double()[valid])
        if not len(logs):
            return BatchNormShift(epoch, name, 1.0, 1.0)
        return BatchNormShift(epoch, name, float(logs.mean().exp()), float(logs.abs().mean().exp()))
