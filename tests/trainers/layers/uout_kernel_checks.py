"""Checks of the kernel of Uout in Triton's interpreter; prints one JSON object. Run in a process of its own, because the
interpreter must be chosen before Triton is imported."""

from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
from scipy import stats

from vsfix.graph_passes.noise.noise import Noise, NoiseKind
from vsfix.trainers.layers import uout_kernel
from vsfix.trainers.layers.uout_kernel import fused_uout

torch.set_num_threads(1)
KINDS = (NoiseKind.UOUT, NoiseKind.UOUT_BERNOULLI, NoiseKind.UOUT_GAUSSIAN)
BETA, COUNT = 0.25, 40_000


def seeded(x: torch.Tensor, kind: NoiseKind, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return fused_uout(x, BETA, kind)


def distribution(kind: NoiseKind) -> dict[str, float]:
    factors = seeded(torch.ones(COUNT), kind).double()
    r = (factors - 1) / BETA
    neighbours = float((r[1:] * r[:-1]).mean())
    lanes = float((r[1024:] * r[:-1024]).mean())
    law = {NoiseKind.UOUT: stats.uniform(-1, 2), NoiseKind.UOUT_GAUSSIAN: stats.norm()}.get(kind)
    return {
        "mean": float(r.mean()) * COUNT**0.5,
        "variance": float(((factors - 1) ** 2).mean()) / Noise(kind, BETA).variance,
        "p": float(stats.kstest(r.numpy(), law.cdf).pvalue)
        if law
        else float(stats.binomtest(int((r > 0).sum()), COUNT).pvalue),
        "levels": len(factors.unique()),
        "correlation": max(abs(neighbours), abs(lanes)) * COUNT**0.5,
    }


def gradient(kind: NoiseKind, x: torch.Tensor) -> dict[str, object]:
    """Whether dL/dx is y / x times dL/dy, where the gradient comes in another order than x."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = seeded(x, kind)
    weight = torch.randn_like(y).contiguous()
    (found,) = torch.autograd.grad(y, x, weight)
    error = (found - weight * (y / x)).abs().max() / weight.abs().max()
    return {"error": float(error), "order": y.stride() == x.stride(), "differs": bool((y != x).any())}


def second_derivative(kind: NoiseKind) -> float:
    x = torch.randn(50, requires_grad=True)
    torch.manual_seed(3)
    y = fused_uout(x**2, BETA, kind)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return float((second - 2 * (y / x**2)).abs().max())


def kept_bytes(kind: NoiseKind) -> int:
    """The bytes that autograd keeps of a forward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel() * t.element_size()) or t, lambda t: t
    ):
        fused_uout(torch.randn(1000, requires_grad=True), BETA, kind)
    return sum(kept)


def another_seed_in_backward(kind: NoiseKind) -> float:
    """The planted mistake: how far the gradient is off then."""
    scale, calls = uout_kernel._scale, []

    def wrong(x, seed, beta, kind):
        calls.append(seed)
        return scale(x, seed + len(calls) - 1, beta, kind)

    uout_kernel._scale = wrong
    try:
        return float(gradient(kind, torch.rand(500) + 1)["error"])
    finally:
        uout_kernel._scale = scale


def replays(kind: NoiseKind) -> bool:
    """Whether activation checkpointing draws the same noise again."""
    x = torch.rand(300, requires_grad=True)
    torch.manual_seed(1)
    y = torch.utils.checkpoint.checkpoint(lambda t: fused_uout(t, BETA, kind) ** 2, x, use_reentrant=False)
    (found,) = torch.autograd.grad(y.sum(), x)
    return torch.allclose(found, 2 * y.detach() / x.detach(), rtol=1e-5)


ORDERS = {
    "flat": torch.rand(5000) + 0.5,
    "channels last": (torch.rand(2, 6, 7, 5) + 0.5).to(memory_format=torch.channels_last),
    "transposed": (torch.rand(40, 30) + 0.5).t(),
    "every other": (torch.rand(60, 30) + 0.5)[::2, ::3],
    "expanded": (torch.rand(1, 30) + 0.5).expand(8, 30),
    "a single number": torch.tensor(1.5),
}
result = {
    kind.value: {
        "distribution": distribution(kind),
        "gradients": {name: gradient(kind, x) for name, x in ORDERS.items()},
        "second derivative": second_derivative(kind),
        "kept bytes": kept_bytes(kind),
        "another seed in backward": another_seed_in_backward(kind),
        "replays": replays(kind),
        "same seed": torch.equal(seeded(ORDERS["flat"], kind), seeded(ORDERS["flat"], kind)),
        "other seed": torch.equal(seeded(ORDERS["flat"], kind), seeded(ORDERS["flat"], kind, 1)),
        "half": [str(seeded(ORDERS["flat"].to(dtype), kind).dtype) for dtype in (torch.float16, torch.bfloat16)],
        "half error": float(
            (seeded(ORDERS["flat"].half(), kind).float() / seeded(ORDERS["flat"].half().float(), kind) - 1).abs().max()
        ),
        "empty": list(fused_uout(torch.empty(0, 3), BETA, kind).shape),
    }
    for kind in KINDS
}
json.dump(result, sys.stdout)
