"""Sees the noise of a torch module while it is being traced in eval mode, where the noise itself is the identity.

Under `tracing_noise` each call of a noise function (torch's dropouts, `uout`), be it from a layer or straight from a
forward, becomes one opaque operator `vsfix.noise::Noise(x)` with an attribute `name`. The exporter carries it through
like any other operator, and the noise that the name stands for is kept beside it. What can't be written down as
`Noise` is listed instead, so that nobody takes silence for the absence of noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise import Noise, NoiseKind

from .noise_layers import uout

NOISE_DOMAIN = "vsfix.noise"

_DROPOUTS: frozenset[Callable[..., Any]] = frozenset({F.dropout, torch.dropout, torch.dropout_})
# The rank at which one draw holds for one channel of one sample; other ranks mean something else in each function.
_FEATURE_DROPOUTS: Mapping[Callable[..., Any], frozenset[int]] = {
    F.dropout1d: frozenset({3}),
    F.dropout2d: frozenset({3, 4, 5}),
    F.dropout3d: frozenset({5}),
    torch.feature_dropout: frozenset({3, 4, 5}),
    torch.feature_dropout_: frozenset({3, 4, 5}),
}
_NOT_WRITABLE: frozenset[Callable[..., Any]] = frozenset(
    {F.alpha_dropout, F.feature_alpha_dropout, torch.alpha_dropout, torch.feature_alpha_dropout}
)


class NoiseTracer(TorchFunctionMode):
    """What the calls that were seen amount to. Made by `tracing_noise`.

    Attributes:
        marked: the noise behind each name, in the order of the calls.
        unmarked: one description for each noise that can't be marked.
        batch_norms: the names of the BatchNorm layers that ran on their stored statistics, once for each call.
        error: why the module can't be exported at all, where a call shows it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.marked: dict[str, Noise] = {}
        self.unmarked: list[str] = []
        self.batch_norms: list[str] = []
        self.error: InputError | None = None
        self._scopes: list[tuple[str, nn.Module]] = []
        self._heard: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        is_noise = func in _DROPOUTS or func in _FEATURE_DROPOUTS or func in _NOT_WRITABLE or func is uout
        if not is_noise:
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        training = _argument(args, kwargs, 2, ("training", "train"), False)
        value = float(_argument(args, kwargs, 1, ("beta",) if func is uout else ("p",), 0.5))
        scope = self._scopes[-1][0] if self._scopes else ""
        self._heard.add(scope)
        try:
            if training:
                place = f"module '{scope}'" if scope else "the module"
                raise InputError(f"{place}: {func.__name__} is on in eval mode too; pass training=self.training")
            noise = self._noise_of(func, value, x.dim(), scope)
        except InputError as error:
            self.error = error
            raise
        return x if noise is None else self._mark(x, noise)

    def _noise_of(self, func: Callable[..., Any], value: float, rank: int, scope: str) -> Noise | None:
        """The noise of one call; None for a ratio of 0 and for what can't be marked."""
        if func is uout:
            return Noise(NoiseKind.UOUT, value)
        if value == 0:
            return None
        if func in _DROPOUTS or (rank == 2 and func not in _NOT_WRITABLE and func not in (F.dropout1d, F.dropout3d)):
            return Noise(NoiseKind.DROPOUT, value)  # a channel of a (N, C) tensor is one element
        if rank in _FEATURE_DROPOUTS.get(func, ()):
            return Noise(NoiseKind.FEATURE_DROPOUT, value)
        self.unmarked.append(f"{func.__name__} with ratio {value:g} on a tensor of rank {rank} in '{scope}'")
        return None

    def _mark(self, x: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The opaque operator in the place of the noise; it keeps the shape."""
        scope, module = self._scopes[-1] if self._scopes else ("", None)
        is_layer = bool(scope) and module is not None and not any(module.children())
        label = scope if is_layer else ".".join(part for part in (scope, noise.kind.value) if part)
        name, number = label, 2
        while name in self.marked:
            name, number = f"{label}_{number}", number + 1
        self.marked[name] = noise
        return torch.onnx.ops.symbolic(
            f"{NOISE_DOMAIN}::Noise", (x,), attrs={"name": name}, dtype=x.dtype, shape=x.shape, version=1
        )

    def _enter_module(self, name: str, module: nn.Module) -> None:
        self._scopes.append((name, module))

    def _leave_module(self, name: str, module: nn.Module) -> None:
        self._scopes.pop()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            self.batch_norms.append(name)
        if _makes_own_noise(module) and name not in self._heard:
            self.unmarked.append(f"the noise of {type(module).__name__} '{name}'")


@contextmanager
def tracing_noise(module: nn.Module) -> Iterator[NoiseTracer]:
    """Sees every noise call that `module` makes inside the block; its hooks are taken off again at the end."""
    tracer = NoiseTracer()
    handles: list[RemovableHandle] = []
    try:
        for name, child in module.named_modules():
            handles.append(child.register_forward_pre_hook(_before(tracer, name)))
            handles.append(child.register_forward_hook(_after(tracer, name), always_call=True))
        with tracer:
            yield tracer
    finally:
        for handle in handles:
            handle.remove()


def _before(tracer: NoiseTracer, name: str) -> Callable[[nn.Module, Any], None]:
    return lambda module, _: tracer._enter_module(name, module)


def _after(tracer: NoiseTracer, name: str) -> Callable[[nn.Module, Any, Any], None]:
    return lambda module, _, __: tracer._leave_module(name, module)


def _makes_own_noise(module: nn.Module) -> bool:
    """Whether a layer, going by its class and its ratio, makes noise that no function call shows in eval mode."""
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return bool(module.dropout > 0)
    ratio = getattr(module, "p", getattr(module, "drop_prob", None))
    return "drop" in type(module).__name__.lower() and not any(module.children()) and ratio != 0


def _argument(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, names: tuple[str, ...], default: Any
) -> Any:
    """An argument of a call, by its position or by any of its names."""
    if len(args) > position:
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), default)
