"""A forward of a module in eval mode with its noise, and nothing but its noise, switched on.

    noise function (torch's dropouts, uout, ...)   scale x + offset in its place
    layer that makes its noise by hand             scale x + offset behind its output, once its kind is known
    part whose noise has no name here              its own training flag on, that of its parts off

Scale and offset are drawn by `graph_passes.noise.sampling` from one seed for each sample, call and draw: they depend on
nothing else, neither the device nor the batch, and a graph exported from the module has the same. What a part draws by
itself comes from torch's generator. BatchNorms keep to their stored statistics throughout.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.noise.sampling import draw_by_sample, generators_of
from vsfix.trainers.export.noise_tracing import NOISE_FUNCTIONS, following_modules, noise_of_call

from .module_noise import ModuleNoise, find_noise, require_module
from .module_samples import MOST_SEED, Call, call_of, copied, keys_of, state_kept, whole_number

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Drawn:
    """One draw of the noise.

    Attributes:
        seed: of the whole.
        number: of the draw.
        keys: of the samples of the call, in their order.
    """

    seed: int
    number: int
    keys: Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Key:
    """A value of a forward: the part that makes it, which of those that the part makes, and by what."""

    scope: str
    number: int
    operator: str = field(compare=False)


class Observer:
    """Hears what a forward does; this one listens to nothing."""

    def given(self, tensors: Sequence[torch.Tensor]) -> None:
        """The tensors that the forward begins with."""

    def computed(self, func: Any, args: Sequence[Any], out: Any) -> None:
        """Any operator ran, also inside of a unit."""

    def made(self, key: Key, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """An operator made a value; a unit or a noise counts as one."""

    def unit(self, key: Key, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], z: torch.Tensor) -> Any:
        """A normalisation or a linear map made z; the return takes its place."""
        return z


UNIT_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(nn.functional.batch_norm, torch.batch_norm, nn.functional.linear),
        *(torch.conv1d, torch.conv2d, torch.conv3d),
        *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
    }
)
NOISE, UNIT = "noise", "unit"
UNNAMED = object()
"""Stands for noise of no known kind where an operator would stand."""


class NoisyForward(TorchFunctionMode):
    """One forward after the other of a module in eval mode.

    Args:
        module: inside `state_kept`.
        noise: what its calls do not show.
        observer: hears what happens; nothing is differentiated then.

    Attributes:
        seen: the noise of the last forward, in the order in which it was made: the part and the kind.
    """

    def __init__(self, module: nn.Module, noise: ModuleNoise, observer: Observer | None = None) -> None:
        super().__init__()
        self._module = module
        self._noise = noise
        self._observer = observer
        self._drawn: Drawn | None = None
        self.seen: list[tuple[str, Noise]] = []
        self.quiet = False
        self._scopes = [""]
        self._counts: Counter[str] = Counter()

    def run(self, call: Call, drawn: Drawn | None = None, forward: Callable[..., Any] | None = None) -> Any:
        """Runs the module with its noise off, or on under one draw; its output.

        Args:
            call: the arguments.
            drawn: the draw; its keys are those of the samples of the call.
            forward: what runs in the place of the module's own call.
        """
        self._drawn, self.seen, self._scopes, self._counts = drawn, [], [""], Counter()
        if self._observer is not None:
            self._observer.given([leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, torch.Tensor)])
        observed = nullcontext() if self._observer is None else _Operators(self, self._observer)
        hooks = following_modules(self._module, self._enter, self._leave)
        with self._parts_on(), hooks, self, observed:
            if forward is None:
                return call_of(self._module, call)
            out = forward(*call[0], **call[1])
            return self._behind("", out)

    @contextmanager
    def _parts_on(self) -> Iterator[None]:
        """The training flags of parts whose noise has no name, and a seed for what they draw."""
        if self._drawn is None or not self._noise.parts:
            yield
            return
        parts = [self._module.get_submodule(name) for name in self._noise.parts]
        torch.manual_seed(crc32(repr((self._drawn.seed, self._drawn.number, self._drawn.keys[0])).encode()))
        try:
            for part in parts:
                part.training = True
            yield
        finally:
            for part in parts:
                part.training = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in NOISE_FUNCTIONS and self._scopes[-1] not in self._noise.parts:
            noise = noise_of_call(func, args, kwargs, self._scopes[-1])
            if isinstance(noise, str):
                raise InputError(f"{noise} is noise of no kind that can be switched on here")
            return self._put(noise, args[0] if args else kwargs["input"])
        if self._observer is None or func not in UNIT_FUNCTIONS or self.quiet:
            return func(*args, **kwargs)
        key = self.next_key(UNIT)
        with self._unheard():
            z = self._observer.unit(key, func, args, kwargs, func(*args, **kwargs))
        self.tell(key, func, args, kwargs, z)
        return z

    def tell(self, key: Key, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Tells the observer of a value; what it computes from it is not heard."""
        if self._observer is not None:
            with self._unheard():
                self._observer.made(key, func, args, kwargs, out)

    def next_key(self, operator: str) -> Key:
        """The key of the value that is made next."""
        scope = self._scopes[-1]
        self._counts[scope] += 1
        return Key(scope, self._counts[scope] - 1, operator)

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        """Keeps the operators inside from the observer."""
        before, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = before

    def _put(self, noise: Noise | None, x: torch.Tensor) -> torch.Tensor:
        """The noise on x, as a value of its own; x as it is where the noise is off."""
        key = self.next_key(NOISE)
        with self._unheard():
            out = x.view_as(x)
            if noise is not None:
                self.seen.append((key.scope, noise))
                if self._drawn is not None:
                    out = _apply(noise, x, self._drawn, len(self.seen) - 1)
        self.tell(key, noise, (x,), {}, out)
        return out

    def _enter(self, name: str, _: nn.Module, __: tuple[Any, ...], ___: Mapping[str, Any]) -> None:
        self._scopes.append(name)

    def _leave(self, name: str, _: nn.Module, out: Any) -> Any:
        noisy = self._behind(name, out) if name in self._noise.layers else None
        self._scopes.pop()
        if name in self._noise.parts and self._observer is not None:
            noisy = pytree.tree_map_only(torch.Tensor, self._drawn_inside, out)
        return noisy

    def _drawn_inside(self, x: torch.Tensor) -> torch.Tensor:
        """The output of a part that draws noise by itself, as a value of its own."""
        key = self.next_key(NOISE)
        with self._unheard():
            out = x.view_as(x)
        self.tell(key, UNNAMED, (x,), {}, out)
        return out

    def _behind(self, name: str, out: Any) -> Any:
        """The output of a part with the noise that it makes by hand."""
        if name not in self._noise.layers or out is None:  # after an error there is no output
            return out
        if not isinstance(out, torch.Tensor):
            raise InputError(f"part '{name}' returns no tensor that noise could be put on")
        return self._put(self._noise.layers[name], out)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells an observer of each operator."""

    def __init__(self, forward: NoisyForward, observer: Observer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._forward = forward
        self._observer = observer

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self._observer.computed(func, args, out)
        if not self._forward.quiet:
            key = self._forward.next_key(func.overloadpacket.__name__)
            self._forward.tell(key, func, args, kwargs or {}, out)
        return out


def _apply(noise: Noise, x: torch.Tensor, drawn: Drawn, place: int) -> torch.Tensor:
    """Scale x + offset; rows of x that samples share out evenly belong to them, else one draw holds for all."""
    keys, shape = drawn.keys, tuple(x.shape)
    if shape and shape[0] % len(keys) == 0:
        shape = (shape[0] // len(keys), *shape[1:])
    else:
        keys = keys[:1]
    scale, offset = draw_by_sample(noise, shape, generators_of((drawn.seed, place, drawn.number, *key) for key in keys))
    dtype = torch.float32 if x.dtype in _HALF else x.dtype
    noisy = x.to(dtype) * torch.from_numpy(scale).to(x.device, dtype)
    if offset is not None:
        noisy = noisy + torch.from_numpy(offset).to(x.device, dtype)
    return noisy.to(x.dtype)


@contextmanager
def noise_averaged(module: nn.Module, draws: int = 32, seed: int = 0) -> Iterator[nn.Module]:
    """Inside the block the module is the network that was trained, F(x) = E_n f(x; n), as a mean over draws.

    Every floating-point tensor that the module returns is the mean over the draws, as the module returns it: of logits
    the mean logit, of probabilities the mean probability. Other tensors are those of the first draw. BatchNorms use
    their stored statistics. The same sample has the same noise in whatever batch it comes, for noise of a known kind.

    Args:
        module: on any device; called with tensors, batch first, which stay as they are even where a forward writes
            into them. Its forward, training flags and random generators are put back at the end, also after an error.
        draws: K, 1 or more; a call costs K forwards. The error of F falls with the square root of K.
        seed: of the noise.

    Yields:
        The module.

    Raises:
        InputError: no module, a number that is out of range, or, at the first call, noise that can't be switched on.
    """
    require_module(module)
    draws = whole_number("draws", draws, 1, sys.maxsize)
    seed = whole_number("seed", seed, 0, MOST_SEED)
    own = vars(module).get("forward")
    forward = module.forward
    found: list[ModuleNoise] = []

    def put_back() -> None:
        if own is None:
            vars(module).pop("forward", None)
        else:
            module.forward = own

    def averaged(*args: Any, **kwargs: Any) -> Any:
        put_back()
        try:
            with torch.no_grad():
                if not found:
                    found.append(find_noise(module, (args, kwargs)))
                keys = keys_of((args, kwargs))
            runs = NoisyForward(module, found[0])
            outs = [runs.run(copied((args, kwargs)), Drawn(seed, draw, keys), forward) for draw in range(draws)]
        finally:
            module.forward = averaged
        return pytree.tree_map(_mean, *outs)

    with state_kept(module, gradients=True):
        module.forward = averaged
        try:
            yield module
        finally:
            put_back()


def _mean(*values: Any) -> Any:
    """The mean of floating-point tensors; of anything else the first."""
    first = values[0]
    if not isinstance(first, torch.Tensor) or not first.is_floating_point():
        return first
    dtype = torch.float32 if first.dtype in _HALF else first.dtype
    return (sum(value.to(dtype) for value in values) / len(values)).to(first.dtype)
