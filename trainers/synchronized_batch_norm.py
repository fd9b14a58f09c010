"""BatchNorm over the joint batch of all processes of a training run.

    n = sum_i n_i      m = sum_i n_i m_i / n      v = sum_i n_i (v_i + (m_i - m)^2) / n        i over the processes

On GPUs it is torch's own, in one kernel. torch has none for a CPU; the one here serves there, with sums that carry the
gradient, so that what is trained on GPUs can be tried without one.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

_DIMENSIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SynchronizedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm that takes its statistics from the default process group; in eval mode, an ordinary one.

    Shapes: (N, C, *positions), kept.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises x, shape (N, C, *positions), and moves the running statistics, unbiased as torch's."""
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.dim())]
        variance, mean = torch.var_mean(x, axes, correction=0)  # (C,)
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = _joint_sum(torch.cat([count, count * mean]))
        joint_mean = sums[1:] / sums[0]
        apart = variance + (mean - joint_mean) ** 2
        joint_variance = _joint_sum(count * apart) / sums[0]
        self._move_statistics(joint_mean.detach(), joint_variance.detach(), float(sums[0].detach()))
        shape = (1, -1, *(1,) * (x.dim() - 2))
        scale = torch.rsqrt(joint_variance + self.eps) * self.weight
        normalised: torch.Tensor = x * scale.view(shape) + (self.bias - joint_mean * scale).view(shape)
        return normalised

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"BatchNorm takes at least 2 axes, not {input.dim()}")

    def _move_statistics(self, mean: torch.Tensor, variance: torch.Tensor, count: float) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1)), share)


class _JointSum(torch.autograd.Function):
    """The sum over all processes; each part enters the loss of all of them, so the gradients are summed up too."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor) -> torch.Tensor:
        return _summed(part)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _summed(gradients[0])


def _joint_sum(part: torch.Tensor) -> torch.Tensor:
    joint: torch.Tensor = _JointSum.apply(part)  # type: ignore[no-untyped-call]
    return joint


def _summed(part: torch.Tensor) -> torch.Tensor:
    joint = part.clone()
    torch.distributed.all_reduce(joint)
    return joint


def synchronize_batch_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with every BatchNorm in it synchronised; the names of its parameters and buffers stay.

    Args:
        module: changed in place.
        device: where it will be trained.
    """
    if device.type != "cpu":
        return cast("nn.Module", nn.SyncBatchNorm.convert_sync_batchnorm(module))  # type: ignore[no-untyped-call]
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _DIMENSIONS):
                setattr(parent, name, _synchronized(child))
    return module


def _synchronized(batch_norm: nn.modules.batchnorm._BatchNorm) -> SynchronizedBatchNorm:
    """The same BatchNorm, with the same tensors."""
    twin = SynchronizedBatchNorm(batch_norm.num_features, batch_norm.eps, batch_norm.momentum)
    twin.load_state_dict(batch_norm.state_dict(), assign=True)
    twin.weight, twin.bias = batch_norm.weight, batch_norm.bias
    return twin.train(batch_norm.training)
