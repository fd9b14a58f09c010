"""Marks the noise of a torch module while it is being traced in eval mode, where the noise itself is the identity.

Under `tracing_noise` each call of a noise function (torch's dropouts, `uout`), be it from a layer or straight from a
forward, becomes one opaque operator `vsfix.noise::Noise(x)` with an attribute `name`. The exporter carries it through
like any other operator, and the noise that the name stands for is held beside it. Noise that can't be written down as
`Noise` is listed instead, so that nobody takes silence for its absence.

Layers that make their noise by hand show nothing in eval mode; the operator goes downstream of those whose noise
`training_noise` has identified.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise, NoiseKind
from vsfix.trainers.layers.noise_layers import drop_path, gaussian_dropout, uout, uout_kind

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
_ALPHA_DROPOUTS: frozenset[Callable[..., Any]] = frozenset({F.alpha_dropout, torch.alpha_dropout, torch.alpha_dropout_})
_FEATURE_ALPHA_DROPOUTS: frozenset[Callable[..., Any]] = frozenset(
    {F.feature_alpha_dropout, torch.feature_alpha_dropout, torch.feature_alpha_dropout_}
)
_LAYERS: Mapping[Callable[..., Any], NoiseKind] = {
    drop_path: NoiseKind.DROP_PATH,
    gaussian_dropout: NoiseKind.GAUSSIAN_DROPOUT,
}
NOISE_FUNCTIONS: frozenset[Callable[..., Any]] = (
    _DROPOUTS | _FEATURE_DROPOUTS.keys() | _ALPHA_DROPOUTS | _FEATURE_ALPHA_DROPOUTS | _LAYERS.keys() | {uout}
)
"""The functions that make noise when they are called, and whose calls can be seen with the noise off."""


class NoiseCalls(TorchFunctionMode):
    """Hands the calls of noise functions over.

    Args:
        call: takes the function, its arguments by position and those by name, and returns its result.
    """

    def __init__(self, call: Callable[[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]], Any]) -> None:
        super().__init__()
        self._call = call

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return (self._call if func in NOISE_FUNCTIONS else _plain)(func, args, kwargs or {})


def _plain(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return func(*args, **kwargs)


@dataclass(frozen=True)
class NoiseSource:
    """A part of a module, or a call in its forward, that makes noise.

    Attributes:
        part: the name of the part in `module.named_modules()`.
        call: which of the noise functions that its own forward calls, from 0; None for the output of the part.
    """

    part: str
    call: int | None = None


class NoiseTracer:
    """The noise calls of a module that were seen. Made by `tracing_noise`.

    Attributes:
        layers: the noise of the layers that make it by hand, by the name of the layer.
        marked: the noise of each name, in the order of the calls.
        sources: of the noise, by the same names.
        unmarked: one description for each noise that can't be marked.
        batch_norms: the names of the BatchNorm layers that ran on their stored statistics, once for each call.
        error: why the module can't be exported at all, where a call shows it.
    """

    def __init__(self, layers: Mapping[str, Noise]) -> None:
        self.layers = layers
        self.marked: dict[str, Noise] = {}
        self.sources: dict[str, NoiseSource] = {}
        self.unmarked: list[str] = []
        self.batch_norms: list[str] = []
        self.error: InputError | None = None
        self._scopes: list[tuple[str, nn.Module]] = []
        self._calls: Counter[str] = Counter()

    def _mark_call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The input of a noise function, marked."""
        x = args[0] if args else kwargs["input"]
        scope = self._scopes[-1][0] if self._scopes else ""
        source = NoiseSource(scope, self._calls[scope])
        self._calls[scope] += 1
        try:
            noise = noise_of_call(func, args, kwargs, scope)
        except InputError as error:
            self.error = error
            raise
        if isinstance(noise, str):
            self.unmarked.append(noise)
            return x
        return x if noise is None else self._mark(x, noise, source)

    def _mark(self, x: torch.Tensor, noise: Noise, source: NoiseSource) -> torch.Tensor:
        """The output of the opaque operator, which replaces the noise and keeps the shape."""
        scope, module = self._scopes[-1] if self._scopes else ("", None)
        is_layer = bool(scope) and module is not None and not any(module.children())
        label = scope if is_layer else ".".join(part for part in (scope, noise.kind.value) if part)
        name, number = label, 2
        while name in self.marked:
            name, number = f"{label}_{number}", number + 1
        self.marked[name] = noise
        self.sources[name] = source
        return torch.onnx.ops.symbolic(
            f"{NOISE_DOMAIN}::Noise", (x,), attrs={"name": name}, dtype=x.dtype, shape=x.shape, version=1
        )

    def _enter_module(self, name: str, module: nn.Module, _: tuple[Any, ...], __: Mapping[str, Any]) -> None:
        self._scopes.append((name, module))

    def _leave_module(self, name: str, module: nn.Module, out: Any) -> Any:
        """The new output of the module; None for no change."""
        # After an error there is no output.
        noisy = None
        if name in self.layers and isinstance(out, torch.Tensor):
            noisy = self._mark(out, self.layers[name], NoiseSource(name))
        self._scopes.pop()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            self.batch_norms.append(name)
        return noisy


def noise_of_call(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], scope: str
) -> Noise | str | None:
    """The noise that a call of one of `NOISE_FUNCTIONS` stands for.

    Args:
        func: what is called.
        args: of the call, by position.
        kwargs: of the call, by name.
        scope: the name of the part whose forward calls it.

    Returns:
        The noise; None for a ratio of 0; a description where it is of no kind that has a name.

    Raises:
        InputError: the noise is on in eval mode too, or its parameter is out of range.
    """
    if _argument(args, kwargs, 2, ("training", "train"), False):
        whose = f"module '{scope}'" if scope else "the module"
        raise InputError(f"{whose}: {func.__name__} is on in eval mode too; pass training=self.training")
    rank = (args[0] if args else kwargs["input"]).dim()
    value = float(_argument(args, kwargs, 1, ("p", "ratio", "beta"), 0.5))
    if func is uout:
        return Noise(uout_kind(_argument(args, kwargs, 3, ("form",), "uniform")), value)
    if value == 0:
        return None
    if func in _LAYERS:
        return Noise(_LAYERS[func], value)
    if func in _DROPOUTS or (rank == 2 and func in (F.dropout2d, torch.feature_dropout, torch.feature_dropout_)):
        return Noise(NoiseKind.DROPOUT, value)  # a channel of a (N, C) tensor is one element
    if rank in _FEATURE_DROPOUTS.get(func, ()):
        return Noise(NoiseKind.FEATURE_DROPOUT, value)
    if func in _ALPHA_DROPOUTS or (rank == 2 and func in _FEATURE_ALPHA_DROPOUTS):
        return Noise(NoiseKind.ALPHA_DROPOUT, value)
    if func in _FEATURE_ALPHA_DROPOUTS:
        return Noise(NoiseKind.FEATURE_ALPHA_DROPOUT, value)
    return f"{func.__name__} with ratio {value:g} on a tensor of rank {rank} in '{scope}'"


@contextmanager
def tracing_noise(module: nn.Module, layers: Mapping[str, Noise] | None = None) -> Iterator[NoiseTracer]:
    """Sees every noise call that `module` makes inside the block; its hooks are taken off again at the end.

    Args:
        module: in eval mode.
        layers: layers that make their noise by hand, by their names in `module.named_modules()`.
    """
    tracer = NoiseTracer(layers or {})
    with following_modules(module, tracer._enter_module, tracer._leave_module), NoiseCalls(tracer._mark_call):
        yield tracer


@contextmanager
def following_modules(
    module: nn.Module,
    enter: Callable[[str, nn.Module, tuple[Any, ...], Mapping[str, Any]], None],
    leave: Callable[[str, nn.Module, Any], Any],
) -> Iterator[None]:
    """Calls `enter` with a part's name and arguments before its forward, `leave` with its output, which it may replace.

    Args:
        module: it and all of its parts; the hooks are taken off again at the end.
        enter: called with (name, part, positional arguments, arguments by name).
        leave: called with (name, part, output); a part whose forward fails has the output None.
    """
    handles: list[RemovableHandle] = []
    try:
        for name, part in module.named_modules():
            handles.append(part.register_forward_pre_hook(_before(enter, name), with_kwargs=True))
            handles.append(part.register_forward_hook(_after(leave, name), always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(
    enter: Callable[[str, nn.Module, tuple[Any, ...], Mapping[str, Any]], None], name: str
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    return lambda module, args, kwargs: enter(name, module, args, kwargs)


def _after(leave: Callable[[str, nn.Module, Any], Any], name: str) -> Callable[[nn.Module, Any, Any], Any]:
    return lambda module, _, out: leave(name, module, out)


def _argument(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, names: tuple[str, ...], default: Any
) -> Any:
    """An argument of a call, by its position or by any of its names."""
    if len(args) > position:
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), default)
