from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.trainers.noise_sites import NO_NOISE
from vsfix.trainers.residual import BlockShape, ResidualBlock

BASIC = BlockShape((6,), 8, stride=2)
BOTTLENECK = BlockShape((6, 6), 8, groups=2, stride=2)
SQUEEZED = BlockShape((6, 12), 32, groups=3, stride=2, reduction=16, shortcut_kernel=3)


def trained(in_channels: int, shape: BlockShape) -> ResidualBlock:
    """A block in eval mode whose BNs are not the identity."""
    torch.manual_seed(0)
    block = ResidualBlock(in_channels, shape, NO_NOISE).double().eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                values.uniform_(0.5, 1.5)
    return block


def normalized(x: torch.Tensor, bn: nn.BatchNorm2d) -> torch.Tensor:
    mean, variance, gamma, beta = (
        values[:, None, None] for values in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )
    return (x - mean) / (variance + bn.eps).sqrt() * gamma + beta


def written_out(block: ResidualBlock, x: torch.Tensor, shape: BlockShape, *, squeeze: bool) -> torch.Tensor:
    """The formula of the module's head; (padding, stride, groups) of each convolution are the papers'."""
    is_basic = len(shape.inside) == 1
    layers = [(1, 2, 1), (1, 1, 1)] if is_basic else [(0, 1, 1), (1, 2, shape.groups), (0, 1, 1)]
    y = x
    for index, (padding, stride, groups) in enumerate(layers, 1):
        conv, bn = getattr(block.body, f"conv{index}"), getattr(block.body, f"bn{index}")
        y = normalized(F.conv2d(y, conv.weight, None, stride, padding, 1, groups), bn)
        y = y.clamp(min=0) if index < len(layers) else y
    if squeeze:
        inner, outer = block.body.attention.squeeze, block.body.attention.excite
        hidden = (y.mean((2, 3)) @ inner.weight[:, :, 0, 0].T + inner.bias).clamp(min=0)
        factors = 1 / (1 + torch.exp(-(hidden @ outer.weight[:, :, 0, 0].T + outer.bias)))
        y = y * factors[:, :, None, None]
    kernel = block.shortcut.conv.weight
    shortcut = normalized(F.conv2d(x, kernel, None, 2, kernel.shape[-1] // 2), block.shortcut.bn)
    return (y + shortcut).clamp(min=0)


@pytest.mark.parametrize("shape", [BASIC, BOTTLENECK, SQUEEZED], ids=["basic", "bottleneck", "squeezed"])
def test_a_block_computes_its_formula(shape):
    block, x = trained(4, shape), torch.randn(3, 4, 7, 9, dtype=torch.float64)
    out = block(x.clone())
    assert out.shape == (3, shape.outside, 4, 5)
    truth = written_out(block, x, shape, squeeze=shape.reduction > 0)
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)


def test_a_lost_squeeze_is_seen():
    block, x = trained(4, SQUEEZED), torch.randn(3, 4, 7, 9, dtype=torch.float64)
    assert (block(x) - written_out(block, x, SQUEEZED, squeeze=False)).abs().max() > 0.1


def test_squeeze_and_excitation_has_a_sixteenth_of_the_channels_inside():
    attention = trained(4, SQUEEZED).body.attention
    assert (attention.squeeze.out_channels, attention.excite.out_channels) == (2, 32)


@pytest.mark.parametrize("shape", [BlockShape((4,), 4), BlockShape((2, 2), 4, reduction=2)], ids=["basic", "squeezed"])
def test_a_block_that_keeps_the_shape_adds_its_input_and_leaves_it_as_it_was(shape):
    block, x = trained(4, shape), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    before = x.clone()
    torch.testing.assert_close(block(x), (block.body(x) + x).clamp(min=0), rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)
    assert isinstance(block.shortcut, nn.Identity)
