"""Noise layers: each as a function and as a Module, side by side.

    dropout             X = a x / p, a ~ Bernoulli(p)        torch's own
    uout                X = x (1 + r), r ~ U(-beta, beta)    E[X] = x, Var[X] = x^2 beta^2 / 3
        bernoulli       r = beta or -beta, equally often     Var[X] = x^2 beta^2
        gaussian        r ~ N(0, beta^2)                     Var[X] = x^2 beta^2
    drop_path           X = a x / p, one a for each sample   E[X] = x, Var[X] = x^2 (1 - p) / p, as Dropout's
    gaussian_dropout    X = x n, n ~ N(1, (1 - p) / p)       the same

All are unbiased and the identity in eval mode. Uout keeps the shift ratio of a BatchNorm downstream near 1:
3 / (3 + beta^2) for zero mean, against p for Dropout. Source: Li, Chen, Hu, Yang, "Understanding the Disharmony between
Dropout and Batch Normalization by Variance Shift", CVPR 2019, arXiv 1801.05134; the others as in `graph_passes.noise`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise, NoiseKind

UoutForm = Literal["uniform", "bernoulli", "gaussian"]
_KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_UOUT_KINDS: Mapping[str, NoiseKind] = {
    "uniform": NoiseKind.UOUT,
    "bernoulli": NoiseKind.UOUT_BERNOULLI,
    "gaussian": NoiseKind.UOUT_GAUSSIAN,
}


def uout(x: torch.Tensor, beta: float, training: bool, form: UoutForm = "uniform") -> torch.Tensor:
    """Multiplies each element by a factor of its own: X = x (1 + r), r of mean 0.

    The gradient is dX/dx = 1 + r, with the r that the forward drew.

    Args:
        x: floating point, any shape.
        beta: the half width of r, or its deviation where r is Gaussian; in (0, 1].
        training: without it, x comes back as it is.
        form: what r is, see the head of this module.

    Returns:
        A tensor of the shape, dtype and device of x.

    Raises:
        InputError: beta is outside its range, or there is no such form.
    """
    # Part of torch's function protocol, so that the export can see the call and mark it.
    if has_torch_function_unary(x):
        result: torch.Tensor = handle_torch_function(uout, (x,), x, beta, training, form)
        return result
    kind = Noise(uout_kind(form), beta).kind
    if not training:
        return x
    if _kernel_serves(x):
        from .uout_kernel import fused_uout

        return fused_uout(x, beta, kind)
    # One draw of 1 + r instead of a draw and an addition: one pass over memory less. In half precision a uniform draw
    # has so few bits that its mean is off; it is drawn in float32, and the product is rounded once.
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    factor = torch.empty_like(x, requires_grad=False, dtype=torch.float32 if narrow else x.dtype)
    if kind is NoiseKind.UOUT:
        factor.uniform_(1 - beta, 1 + beta)
    elif kind is NoiseKind.UOUT_GAUSSIAN:
        factor.normal_(1, beta)
    else:
        factor.bernoulli_(0.5).mul_(2 * beta).add_(1 - beta)
    return (x * factor).to(x.dtype)


def _kernel_serves(x: torch.Tensor) -> bool:
    """Whether the fused kernel can take x.

    torch.compile fuses the plain form by itself. A CUDA graph that is being captured would replay the kernel's seed.
    """
    if not x.is_cuda or x.dtype not in _KERNEL_TYPES or torch.compiler.is_compiling():
        return False
    return find_spec("triton") is not None and not torch.cuda.is_current_stream_capturing()


def uout_kind(form: str) -> NoiseKind:
    """The kind of noise that a form of Uout is.

    Raises:
        InputError: there is no such form.
    """
    if form not in _UOUT_KINDS:
        raise InputError(f"uout: the form must be one of {', '.join(_UOUT_KINDS)}, not {form!r}")
    return _UOUT_KINDS[form]


class Uout(nn.Module):
    """X = x (1 + r), r of mean 0 for each element in training; the identity in eval mode.

    Shapes: any, unchanged.

    Attributes:
        beta: the half width of r, or its deviation where r is Gaussian; in (0, 1].
        form: what r is: "uniform", "bernoulli" or "gaussian".

    Raises:
        InputError: beta is outside its range, or there is no such form.
    """

    def __init__(self, beta: float = 0.1, form: UoutForm = "uniform") -> None:
        super().__init__()
        self.beta = Noise(uout_kind(form), beta).value
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Noise on x, any shape."""
        return uout(x, self.beta, self.training, self.form)

    def extra_repr(self) -> str:
        """The text between the brackets when the layer is printed."""
        return f"beta={self.beta:g}, form={self.form}"


def drop_path(x: torch.Tensor, ratio: float, training: bool) -> torch.Tensor:
    """Drops whole samples and scales the others by 1 / (1 - ratio): stochastic depth, at the end of a residual branch.

    Args:
        x: floating point, batch first.
        ratio: the share of the samples that is dropped, in [0, 1).
        training: without it, x comes back as it is.

    Returns:
        A tensor of the shape, dtype and device of x.

    Raises:
        InputError: the ratio is outside its range.
    """
    if has_torch_function_unary(x):
        result: torch.Tensor = handle_torch_function(drop_path, (x,), x, ratio, training)
        return result
    keep = 1 - Noise(NoiseKind.DROP_PATH, ratio).value
    if not training or ratio == 0:
        return x
    return x * x.new_empty(x.shape[:1] + (1,) * (x.dim() - 1)).bernoulli_(keep).div_(keep)


def gaussian_dropout(x: torch.Tensor, ratio: float, training: bool) -> torch.Tensor:
    """Multiplies each element by a factor of its own: X = x n, n ~ N(1, ratio / (1 - ratio)).

    Args:
        x: floating point, any shape.
        ratio: that of the Dropout with the same variance, in [0, 1).
        training: without it, x comes back as it is.

    Returns:
        A tensor of the shape, dtype and device of x.

    Raises:
        InputError: the ratio is outside its range.
    """
    if has_torch_function_unary(x):
        result: torch.Tensor = handle_torch_function(gaussian_dropout, (x,), x, ratio, training)
        return result
    variance = Noise(NoiseKind.GAUSSIAN_DROPOUT, ratio).variance
    if not training or ratio == 0:
        return x
    return x * torch.empty_like(x, requires_grad=False).normal_(1, variance**0.5)


class _RatioLayer(nn.Module):
    """A noise layer with one drop ratio, which its `kind` checks."""

    kind: NoiseKind

    def __init__(self, ratio: float = 0.5) -> None:
        super().__init__()
        self.ratio = Noise(self.kind, ratio).value

    def extra_repr(self) -> str:
        """The text between the brackets when the layer is printed."""
        return f"ratio={self.ratio:g}"


class DropPath(_RatioLayer):
    """X = a x / p, one a ~ Bernoulli(p) for each sample in training; the identity in eval mode.

    Shapes: (N, ...), unchanged.

    Attributes:
        ratio: 1 - p, in [0, 1).

    Raises:
        InputError: the ratio is outside its range.
    """

    kind = NoiseKind.DROP_PATH

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Noise on x, shape (N, ...)."""
        return drop_path(x, self.ratio, self.training)


class GaussianDropout(_RatioLayer):
    """X = x n, n ~ N(1, ratio / (1 - ratio)) elementwise in training; the identity in eval mode.

    Shapes: any, unchanged.

    Attributes:
        ratio: in [0, 1).

    Raises:
        InputError: the ratio is outside its range.
    """

    kind = NoiseKind.GAUSSIAN_DROPOUT

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Noise on x, any shape."""
        return gaussian_dropout(x, self.ratio, self.training)


_LAYERS: Mapping[NoiseKind, Callable[[float], nn.Module]] = {
    NoiseKind.DROPOUT: nn.Dropout,
    NoiseKind.FEATURE_DROPOUT: nn.Dropout2d,
    NoiseKind.ALPHA_DROPOUT: nn.AlphaDropout,
    NoiseKind.FEATURE_ALPHA_DROPOUT: nn.FeatureAlphaDropout,
    NoiseKind.GAUSSIAN_DROPOUT: GaussianDropout,
    NoiseKind.DROP_PATH: DropPath,
    NoiseKind.UOUT: Uout,
    NoiseKind.UOUT_BERNOULLI: partial(Uout, form="bernoulli"),
    NoiseKind.UOUT_GAUSSIAN: partial(Uout, form="gaussian"),
}


def make_noise_layer(noise: Noise | None) -> nn.Module:
    """The layer that puts `noise` on its input in training; None makes an identity."""
    return nn.Identity() if noise is None else _LAYERS[noise.kind](noise.value)
