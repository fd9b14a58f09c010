"""ONNX operators that compute each element from the elements at its index: arithmetic, comparisons, activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce

import torch
from torch.nn import functional

from .onnx_call import Evaluate, Operator, OperatorCall

_Unary = Callable[[torch.Tensor], torch.Tensor]
_Binary = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _unary(function: _Unary) -> Operator:
    """An operator of one tensor without attributes."""
    return Operator(lambda call: function(call[0]))


def _binary(function: _Binary) -> Operator:
    """An operator of two tensors that broadcast."""
    return Operator(lambda call: function(call[0], call[1]))


def _variadic(function: _Binary) -> Operator:
    """An operator of any number of tensors that broadcast."""
    return Operator(lambda call: reduce(function, call.present))


def _activation(function: Callable[..., torch.Tensor], **defaults: float) -> Operator:
    """An activation whose attributes are the parameters of `function` in their order."""

    def evaluate(call: OperatorCall) -> torch.Tensor:
        return function(call[0], *(call.attribute(name, value) for name, value in defaults.items()))

    return Operator(evaluate)


def _mean(call: OperatorCall) -> torch.Tensor:
    return reduce(torch.add, call.present) / len(call.present)


def _div(dividend: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    """Whole numbers are divided toward zero."""
    if dividend.is_floating_point():
        return dividend / divisor
    return torch.div(dividend, divisor, rounding_mode="trunc")


def _pow(call: OperatorCall) -> torch.Tensor:
    """The result has the type of the base, whatever that of the exponent."""
    base, exponent = call[0], call[1]
    if exponent.numel() == 1 and exponent.dim() <= base.dim():  # torch's derivative is exact for a number
        return torch.pow(base, exponent.item())
    return torch.pow(base, exponent).to(base.dtype)


def _mod(call: OperatorCall) -> torch.Tensor:
    function = torch.fmod if call.attribute("fmod", 0) else torch.remainder
    return function(call[0], call[1])


def _clip(call: OperatorCall) -> torch.Tensor:
    """Bounds are attributes before opset 11."""
    low = call.attribute("min") if call.opset < 11 else call.optional(1)
    high = call.attribute("max") if call.opset < 11 else call.optional(2)
    if low is None and high is None:
        return call[0]
    bounds = [float(bound) if isinstance(bound, torch.Tensor) else bound for bound in (low, high)]
    return call[0].clamp(*bounds)


def _selu(x: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    return gamma * functional.elu(x, alpha)


def _thresholded_relu(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


def _prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return torch.where(x < 0, slope * x, x)


def _hard_sigmoid(x: torch.Tensor, alpha: float = 1 / 6, beta: float = 0.5) -> torch.Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _hard_swish(x: torch.Tensor) -> torch.Tensor:
    return x * _hard_sigmoid(x)


def _swish(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return x * torch.sigmoid(alpha * x)


def _softplus(x: torch.Tensor) -> torch.Tensor:
    return functional.softplus(x, threshold=math.inf) if x.numel() == 0 else torch.logaddexp(x, torch.zeros_like(x))


def _gelu(call: OperatorCall) -> torch.Tensor:
    return functional.gelu(call[0], approximate=call.attribute("approximate", "none"))


def _mish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.tanh(_softplus(x))


def _softmax(function: Callable[..., torch.Tensor]) -> Evaluate:
    """Before opset 13 everything from `axis` on is one axis."""

    def evaluate(call: OperatorCall) -> torch.Tensor:
        x = call[0]
        if call.opset >= 13:
            return function(x, dim=call.axis(-1, x.dim()))
        rows = math.prod(x.shape[: call.axis(1, x.dim())])
        return function(x.reshape(rows, -1), dim=1).reshape(x.shape)

    return evaluate


def _where(call: OperatorCall) -> torch.Tensor:
    return torch.where(call[0].bool(), call[1], call[2])


def _is_infinite(call: OperatorCall) -> torch.Tensor:
    above = torch.isposinf(call[0]) & bool(call.attribute("detect_positive", 1))
    below = torch.isneginf(call[0]) & bool(call.attribute("detect_negative", 1))
    return above | below


ELEMENTWISE: Mapping[str, Operator] = {
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _binary(_div),
    "Pow": Operator(_pow),
    "Mod": Operator(_mod),
    "Sum": _variadic(torch.add),
    "Min": _variadic(torch.minimum),
    "Max": _variadic(torch.maximum),
    "Mean": Operator(_mean),
    "Neg": _unary(torch.neg),
    "Abs": _unary(torch.abs),
    "Sqrt": _unary(torch.sqrt),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Reciprocal": _unary(torch.reciprocal),
    "Erf": _unary(torch.erf),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Floor": _unary(torch.floor),
    "Ceil": _unary(torch.ceil),
    "Round": _unary(torch.round),
    "Sign": _unary(torch.sign),
    "IsNaN": _unary(torch.isnan),
    "IsInf": Operator(_is_infinite),
    "Equal": _binary(torch.eq),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Not": _unary(torch.logical_not),
    "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or),
    "Xor": _binary(torch.logical_xor),
    "Where": Operator(_where),
    "Relu": _unary(torch.relu),
    "Sigmoid": _unary(torch.sigmoid),
    "Tanh": _unary(torch.tanh),
    "Softplus": _unary(_softplus),
    "Softsign": _unary(functional.softsign),
    "HardSwish": _unary(_hard_swish),
    "Mish": _unary(_mish),
    "PRelu": _binary(_prelu),
    "LeakyRelu": _activation(functional.leaky_relu, alpha=0.01),
    "ThresholdedRelu": _activation(_thresholded_relu, alpha=1.0),
    "Elu": _activation(functional.elu, alpha=1.0),
    "Celu": _activation(functional.celu, alpha=1.0),
    "Selu": _activation(_selu, alpha=1.6732632423543772, gamma=1.0507009873554805),
    "HardSigmoid": _activation(_hard_sigmoid, alpha=0.2, beta=0.5),
    "Swish": _activation(_swish, alpha=1.0),
    "Gelu": Operator(_gelu),
    "Clip": Operator(_clip),
    "Softmax": Operator(_softmax(torch.softmax)),
    "LogSoftmax": Operator(_softmax(torch.log_softmax)),
}
