"""Uout on a GPU in one pass, keeping nothing for the backward pass but a seed.

    y_i = x_i (1 + beta r_i)        dL/dx_i = dL/dy_i (1 + beta r_i)

r_i is drawn in the kernel by Philox from (seed, i), i the index of the element in memory, and drawn again from the same
numbers where the gradient needs it. nn.Dropout keeps a mask of one byte per element for that. The seed comes from
torch's default generator of the CPU, so that `torch.manual_seed` decides it, no kernel is launched for it, and
activation checkpointing, which puts that generator back, draws the same noise again.

Source of the method: Tillet et al., Triton; Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from vsfix.graph_passes.noise.noise import NoiseKind

_BLOCK = 1024
_DRAWS = 4  # numbers that one call of Philox gives
_FORMS = {NoiseKind.UOUT: 0, NoiseKind.UOUT_BERNOULLI: 1, NoiseKind.UOUT_GAUSSIAN: 2}


def fused_uout(x: torch.Tensor, beta: float, kind: NoiseKind) -> torch.Tensor:
    """X = x (1 + r), see `noise_layers.uout`.

    Args:
        x: floating point, on a GPU, any shape and any order in memory.
        beta: the half width of r, in (0, 1].
        kind: the form of Uout.

    Returns:
        A tensor of the shape, dtype and device of x, differentiable any number of times.
    """
    seed = int(torch.randint(2**62, ()))
    result: torch.Tensor = _Scale.apply(x, seed, beta, kind)
    return result


class _Scale(torch.autograd.Function):
    """The product with the factors that a seed means. It is linear in x, and so its own derivative."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seed: int, beta: float, kind: NoiseKind) -> torch.Tensor:
        dense = _dense(x)
        ctx.drawn = seed, beta, kind
        ctx.stride = dense.stride()
        return _scale(dense, seed, beta, kind)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The index in memory decides the draw, so the gradient is brought to the order that x had.
        (gradient,) = gradients
        if gradient.stride() != ctx.stride:
            gradient = torch.empty_strided(
                gradient.shape, ctx.stride, dtype=gradient.dtype, device=gradient.device
            ).copy_(gradient)
        return _Scale.apply(gradient, *ctx.drawn), None, None, None


def _dense(x: torch.Tensor) -> torch.Tensor:
    """x itself where its elements fill a piece of memory, in whatever order; else a copy that does."""
    like_x = torch.empty_like(x, device="meta")  # in the order of x, and dense
    return x if x.stride() == like_x.stride() else torch.empty_like(x).copy_(x)


def _scale(x: torch.Tensor, seed: int, beta: float, kind: NoiseKind) -> torch.Tensor:
    """Runs the kernel over the memory of a dense tensor."""
    y = torch.empty_like(x)
    count = x.numel()
    if count:
        grid = (triton.cdiv(count, _BLOCK * _DRAWS),)
        with torch.cuda.device_of(x):  # Triton launches on the current device
            _scale_kernel[grid](x, y, seed, count, beta, FORM=_FORMS[kind], BLOCK=_BLOCK)
    return y


@triton.jit
def _scale_kernel(x, y, seed, count, beta, FORM: tl.constexpr, BLOCK: tl.constexpr):
    """Four blocks of elements, for which each call of Philox gives one draw each."""
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    if FORM == 2:
        r0, r1, r2, r3 = tl.randn4x(seed, program * BLOCK + lane)
    else:
        r0, r1, r2, r3 = tl.rand4x(seed, program * BLOCK + lane)
    first = program * BLOCK * 4 + lane
    _scale_block(x, y, first, r0, count, beta, FORM)
    _scale_block(x, y, first + BLOCK, r1, count, beta, FORM)
    _scale_block(x, y, first + 2 * BLOCK, r2, count, beta, FORM)
    _scale_block(x, y, first + 3 * BLOCK, r3, count, beta, FORM)


@triton.jit
def _scale_block(x, y, index, draw, count, beta, FORM: tl.constexpr):
    """One block: float32 inside, rounded once to the type of y."""
    if FORM == 0:
        r = 2 * draw - 1
    elif FORM == 1:
        r = tl.where(draw < 0.5, -1.0, 1.0)
    else:
        r = draw
    inside = index < count
    values = tl.load(x + index, mask=inside).to(tl.float32)
    tl.store(y + index, (values * (1 + beta * r)).to(y.dtype.element_ty), mask=inside)
