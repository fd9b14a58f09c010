"""The noise of a module that its calls in eval mode do not show: made by hand, drawn by parts, or named by a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from vsfix.graph_passes.errors import InputError, first_line
from vsfix.graph_passes.noise.insertion import parse_noise_option
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.export.noise_reach import copy_module
from vsfix.trainers.export.training_noise import observe_training_noise

from .module_samples import Call, copied

ToldNoise = Mapping[str, str] | Iterable[str] | str | None
"""Noise that a person names: `KIND:VALUE` by the name of a part, or one text or several `PART=KIND:VALUE`."""
_LOOKED_AT = 8  # samples


@dataclass(frozen=True)
class ModuleNoise:
    """The noise of a module that its calls in eval mode do not show.

    Attributes:
        layers: made by hand, by the name of the layer.
        parts: the names of those that draw what has no name.
        warnings: what is to be said of them.
    """

    layers: Mapping[str, Noise] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def find_noise(module: nn.Module, call: Call, told: ToldNoise = None) -> ModuleNoise:
    """Looks for noise that eval mode does not show, in a copy on the CPU that runs in training mode.

    Args:
        module: not changed.
        call: real samples; a few are looked at.
        told: what a person says of the output of parts.

    Raises:
        InputError: a part that is not there, or a module that can't be looked at.
    """
    named = _told(module, told)
    rows, others = _few(call)
    try:
        twin = _OneInput(copy_module(module), others).to("cpu").float()
    except Exception as error:  # the state of foreign code may refuse in any way
        raise InputError(f"the module can't be copied, so its noise can't be looked at: {first_line(error)}") from error
    found = observe_training_noise(twin, rows)
    parts = [name.partition(".")[2] for name in found.parts]
    if len(parts) < len(found.unknown):
        unknown = found.unknown[0].replace("'module.", "'")
        raise InputError(f"the noise of the module can't be switched on: {unknown}")
    warnings = tuple(
        f"{text} is switched on by the flag of the part; its draws are those of torch's generator"
        for part, text in zip(parts, (text.replace("'module.", "'") for text in found.unknown), strict=True)
        if part not in named
    )
    layers = {name.partition(".")[2]: noise for name, noise in found.layers.items()}
    return ModuleNoise(layers | named, tuple(part for part in parts if part not in named), warnings)


def _told(module: nn.Module, told: ToldNoise) -> dict[str, Noise]:
    """The noise that a person names, by part."""
    if told is None:
        return {}
    if isinstance(told, Mapping):
        told = [f"{name}={noise}" for name, noise in told.items()]
    texts = [told] if isinstance(told, str) or not isinstance(told, Iterable) else list(told)
    if not all(isinstance(text, str) for text in texts):
        raise InputError("noise: give a dict of KIND:VALUE by part, or texts PART=KIND:VALUE")
    named = dict(parse_noise_option(text) for text in texts)
    parts = {name for name, _ in module.named_modules()}
    for name in named:
        if name not in parts:
            raise InputError(f"noise of '{name}': the module has no such part; see module.named_modules()")
    return named


class _Others:
    """The arguments of a call around the first tensor; copies of a module share them."""

    def __init__(self, leaves: list[Any], spec: pytree.TreeSpec, place: int) -> None:
        self._leaves, self._spec, self._place = leaves, spec, place

    def __deepcopy__(self, _: Any) -> _Others:
        return self

    def around(self, rows: torch.Tensor) -> Call:
        """The arguments of the call."""
        args, kwargs = pytree.tree_unflatten(
            [rows if place == self._place else leaf for place, leaf in enumerate(self._leaves)], self._spec
        )
        return tuple(args), dict(kwargs)


class _OneInput(nn.Module):
    """A module as a function of the first tensor with a batch axis among its arguments."""

    def __init__(self, module: nn.Module, others: _Others) -> None:
        super().__init__()
        self.module = module
        self._others = others

    def forward(self, rows: torch.Tensor) -> Any:
        """Runs the module with the other arguments around the rows."""
        args, kwargs = copied(self._others.around(rows))
        return self.module(*args, **kwargs)


def _few(call: Call) -> tuple[torch.Tensor, _Others]:
    """The first samples of a call, at least two, on the CPU: the first tensor, and what is around it."""

    def few(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        leaf = leaf.detach().cpu()
        leaf = leaf.float() if leaf.is_floating_point() else leaf
        return torch.cat([leaf, leaf])[: max(2, min(len(leaf), _LOOKED_AT))] if leaf.dim() else leaf

    leaves, spec = pytree.tree_flatten(call)
    leaves = [few(leaf) for leaf in leaves]
    place = next(n for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.dim())
    return leaves[place], _Others(leaves, spec, place)


def require_module(module: nn.Module) -> None:
    """Refuses what is no module that can be looked into.

    Raises:
        InputError: the reason, and what to give instead.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"a torch.nn.Module is needed, not {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError("a scripted module can't be looked into: give the module that it was made from")
    if hasattr(module, "_orig_mod"):
        raise InputError("a compiled module can't be looked into: give the module that it was made from; both share it")
