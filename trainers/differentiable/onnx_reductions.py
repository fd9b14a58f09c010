"""ONNX operators that sum over axes: reductions, matrix products, and all normalisations but BatchNormalization."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from .onnx_call import Evaluate, Operator, OperatorCall, along, only

_Reduce = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def _reduction(function: _Reduce) -> Operator:
    """A reduction; without axes it reduces all of them, or none where the node says so."""

    def evaluate(call: OperatorCall) -> torch.Tensor:
        x = call[0]
        axes = call.axes(1, x.dim())
        if not axes and call.attribute("noop_with_empty_axes", 0):
            return x
        return function(x, axes or list(range(x.dim())), bool(call.attribute("keepdims", 1)))

    return Operator(evaluate)


def _l2(x: torch.Tensor, axes: list[int], keepdims: bool) -> torch.Tensor:
    # Its gradient at 0 is 0, a square root's is not.
    norm: torch.Tensor = torch.linalg.vector_norm(x, 2, axes, keepdims)
    return norm


def _product(x: torch.Tensor, axes: list[int], keepdims: bool) -> torch.Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keepdims)
    return x


def _extremum(function: Callable[..., torch.Tensor]) -> Evaluate:
    """ArgMax and ArgMin."""

    def evaluate(call: OperatorCall) -> torch.Tensor:
        x = call[0]
        return function(x, dim=call.axis(0, x.dim()), keepdim=bool(call.attribute("keepdims", 1)))

    return evaluate


def _gemm(call: OperatorCall) -> torch.Tensor:
    a = call[0].T if call.attribute("transA", 0) else call[0]  # (M, K)
    b = call[1].T if call.attribute("transB", 0) else call[1]  # (K, N)
    c = call.optional(2)
    alpha, beta = float(call.attribute("alpha", 1.0)), float(call.attribute("beta", 1.0))
    if c is None:
        return alpha * (a @ b)
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


def _einsum(call: OperatorCall) -> torch.Tensor:
    return torch.einsum(call.attribute("equation"), *call.present)


def _normalised(x: torch.Tensor, axes: list[int], epsilon: float) -> torch.Tensor:
    """Mean 0 and variance 1 over the axes."""
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + epsilon)


def _instance_normalization(call: OperatorCall) -> torch.Tensor:
    x = call[0]  # (N, C, *positions)
    y = _normalised(x, list(range(2, x.dim())), call.attribute("epsilon", 1e-5))
    per_channel = along(1, x.dim())
    return y * call[1].reshape(per_channel) + call[2].reshape(per_channel)


def _layer_normalization(call: OperatorCall) -> torch.Tensor:
    x = call[0]
    axes = list(range(call.axis(-1, x.dim()), x.dim()))
    y = _normalised(x, axes, call.attribute("epsilon", 1e-5)) * call[1]
    shift = call.optional(2)
    return y if shift is None else y + shift


def _rms_normalization(call: OperatorCall) -> torch.Tensor:
    x = call[0]
    axes = list(range(call.axis(-1, x.dim()), x.dim()))
    power = x.square().mean(axes, keepdim=True) + call.attribute("epsilon", 1e-5)
    return x * torch.rsqrt(power) * call[1]


def _group_normalization(call: OperatorCall) -> torch.Tensor:
    """Scale and shift are per group before opset 21, per channel from there on."""
    x, groups = call[0], int(call.attribute("num_groups"))
    y = functional.group_norm(x, groups, eps=call.attribute("epsilon", 1e-5))
    repeats = x.shape[1] // groups if call.opset < 21 else 1
    scale, shift = (call[index].repeat_interleave(repeats).reshape(along(1, x.dim())) for index in (1, 2))
    return y * scale + shift


def _mean_variance_normalization(call: OperatorCall) -> torch.Tensor:
    return _normalised(call[0], [int(axis) for axis in call.attribute("axes", [0, 2, 3])], 1e-9)


def _lp_normalization(call: OperatorCall) -> torch.Tensor:
    x, axis = call[0], call.axis(-1, call[0].dim())
    power = int(call.attribute("p", 2))
    norm = x.abs().sum(axis, True) if power == 1 else _l2(x, [axis], True)
    return x / norm.clamp(min=torch.finfo(x.dtype).tiny)


def _local_response_normalization(call: OperatorCall) -> torch.Tensor:
    """Over the `size` channels around each one; torch's own centres an even size differently."""
    x, size = call[0], int(call.attribute("size"))
    before = (size - 1) // 2
    padding = [0, 0] * (x.dim() - 2) + [before, size - 1 - before]
    power = functional.pad(x.square(), padding).unfold(1, size, 1).sum(-1)  # (N, C, *positions)
    factor = float(call.attribute("bias", 1.0)) + float(call.attribute("alpha", 1e-4)) / size * power
    return x / torch.pow(factor, float(call.attribute("beta", 0.75)))


REDUCTIONS: Mapping[str, Operator] = {
    "ReduceMean": _reduction(lambda x, axes, keepdims: x.mean(axes, keepdims)),
    "ReduceSum": _reduction(lambda x, axes, keepdims: x.sum(axes, keepdims)),
    "ReduceMax": _reduction(lambda x, axes, keepdims: x.amax(axes, keepdims)),
    "ReduceMin": _reduction(lambda x, axes, keepdims: x.amin(axes, keepdims)),
    "ReduceL1": _reduction(lambda x, axes, keepdims: x.abs().sum(axes, keepdims)),
    "ReduceL2": _reduction(_l2),
    "ReduceSumSquare": _reduction(lambda x, axes, keepdims: x.square().sum(axes, keepdims)),
    "ReduceLogSum": _reduction(lambda x, axes, keepdims: x.sum(axes, keepdims).log()),
    "ReduceLogSumExp": _reduction(lambda x, axes, keepdims: x.logsumexp(axes, keepdims)),
    "ReduceProd": _reduction(_product),
    "ArgMax": Operator(_extremum(torch.argmax), only("select_last_index", 0)),
    "ArgMin": Operator(_extremum(torch.argmin), only("select_last_index", 0)),
    "Gemm": Operator(_gemm),
    "MatMul": Operator(lambda call: call[0] @ call[1]),
    "Einsum": Operator(_einsum),
    "InstanceNormalization": Operator(_instance_normalization),
    "LayerNormalization": Operator(_layer_normalization),
    "RMSNormalization": Operator(_rms_normalization),
    "GroupNormalization": Operator(_group_normalization),
    "MeanVarianceNormalization": Operator(_mean_variance_normalization),
    "LpNormalization": Operator(_lp_normalization),
    "LRN": Operator(_local_response_normalization),
}
