"""The weights of a module in the file of a checkpoint, in whatever form training left them there.

A checkpoint is taken for a tree of dicts. Each tensor of it has a path, `state_dict.model.conv.weight`: keys of dicts,
then the name in the innermost one. The weights of a module lie wherever one prefix stands before the names of all of
its tensors. So a state_dict under some key, one of a part (Lightning's `model.`) and one of a wrapper (DDP's `module.`,
torch.compile's `_orig_mod.`) are the same case, and a prefix is what `--weights-key` names.

    one prefix           taken
    averages beside it   (a key with ema, swa or average in it) left, and named
    several              refused; the keys are named
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from vsfix.graph_passes.errors import InputError, ModelError, few_of
from vsfix.graph_passes.io.named_file import why_unreadable

from .torch_file import read_weights_file

_Table = Mapping[str, torch.Tensor]
_SHOWN_KEYS = 3
_DEEPEST = 4  # of dicts in each other
_WRAPPERS = frozenset(("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_COUNTERS = ("num_batches_tracked", "n_averaged")  # which no deployed number depends on
# What an optimizer keeps beside each weight may have the names of the weights.
_NO_WEIGHTS = re.compile(
    r"optim(i[sz]ers?)?(_states?|_state_dict)?|(max_)?exp_avg(_sq)?|momentum_buffers?|grads?|gradients", re.IGNORECASE
)
_AVERAGE = re.compile(r"(^|[._])(ema|swa|avg|averaged?|shadow)([._]|$)|average", re.IGNORECASE)


@dataclass(frozen=True)
class FoundWeights:
    """What was taken from a file.

    Attributes:
        source: the file, the prefix and what was left, in one line.
        averages: the keys of averages that were left for plain weights.
    """

    source: str
    averages: tuple[str, ...] = ()


def load_weights(module: nn.Module, path: Path, key: str | None = None) -> FoundWeights:
    """Loads the weights of a file into a module; no code of the file is run.

    Args:
        module: whose names tell where its weights are.
        path: a file of `torch.save`, or a safetensors file.
        key: where the weights are, as `ema` or `state_dict.model`; None where there is one place alone.

    Returns:
        What was taken.

    Raises:
        InputError: no such weights in the file, or in several places.
    """
    if (reason := why_unreadable(path)) is not None:
        raise InputError(f"--weights {path}: {reason}")
    try:
        content = read_weights_file(path)
    except ModelError as error:
        raise InputError(f"--weights {error}") from None
    if not isinstance(content, Mapping):
        raise InputError(
            f"--weights {path}: holds no state_dict but a {type(content).__name__}; save module.state_dict()"
        )
    tables = dict(_tables(content, ()))
    if not tables:
        raise InputError(f"--weights {path}: holds no state_dict; save module.state_dict()")
    places = _places(tables, module)
    if not places:  # a wrapper around a part stands in the middle of its names
        tables = {keys: _unwrapped(table) for keys, table in tables.items()}
        places = _places(tables, module)
    chosen, averages = _choose(path, places, key) if places else (_nearest(path, tables, module, key), ())
    _require_these(path, chosen, module)
    _require_kinds(path, chosen, module)
    _require_tied(path, chosen, module)
    try:
        module.load_state_dict(chosen.state(module), strict=False)  # what is no tensor stays the module's own
    except Exception as error:  # the hooks of a module are foreign code
        raise InputError(f"--weights {path}: do not fit the module: {' '.join(str(error).split())}") from error
    return FoundWeights(f"{path}{chosen.label}", averages)


@dataclass(frozen=True, eq=False)
class _Place:
    """A place where weights may be.

    Attributes:
        keys: of the dicts around the table.
        prefix: of the names in it, with its dot.
        table: tensors by name.
    """

    keys: tuple[str, ...]
    prefix: str
    table: Mapping[str, torch.Tensor]

    @property
    def key(self) -> str:
        """What `--weights-key` calls it."""
        return ".".join((*self.keys, self.prefix)).rstrip(".")

    @property
    def label(self) -> str:
        """Where it is, and what beside it is left."""
        left = [name for name in self.table if not name.startswith(self.prefix) and not name.endswith(_COUNTERS)]
        text = f", {self.key}" if self.key else ""
        return f"{text} (left out: {few_of(sorted(left), _SHOWN_KEYS)})" if left else text

    def names(self) -> set[str]:
        """The names of the tensors without the prefix."""
        return {name[len(self.prefix) :] for name in self.table if name.startswith(self.prefix)}

    def state(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """The tensors by the names of the module; counters and tied weights that are not there are the module's own."""
        own, first = _own(module), _first_names(module)
        held = {name: self.table[self.prefix + name] for name in own if self.prefix + name in self.table}
        tied = {first[name]: tensor for name, tensor in held.items()}
        return {name: held.get(name, tied.get(first[name], tensor)) for name, tensor in own.items()}


def _tables(content: Mapping[object, object], keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], _Table]]:
    """Every dict that holds tensors by name, with the keys that lead to it."""
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    if table := {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}:
        yield keys, table
    if len(keys) < _DEEPEST:
        for name, value in named.items():
            if isinstance(value, Mapping) and not _NO_WEIGHTS.fullmatch(name):
                yield from _tables(value, (*keys, name))


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a module by name; its state may hold other objects too."""
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    if lazy := [name for name, tensor in own.items() if is_lazy(tensor)]:
        raise InputError(
            f"{type(module).__name__}: {lazy[0]} has no shape before a first run; let the factory run it once"
        )
    return own


def _first_names(module: nn.Module) -> dict[str, str]:
    """The name that stands for each tensor: of tied weights the first one."""
    first: dict[object, str] = {}
    return {
        name: first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.data_ptr() else name, name)
        for name, tensor in _own(module).items()
    }


def _lacking(module: nn.Module, names: set[str]) -> set[str]:
    """What a file that holds these names lacks: no counter, and of tied weights one is enough."""
    first = _first_names(module)
    held = {first[name] for name in names if name in first}
    return {name for name in first.values() if not name.endswith(_COUNTERS)} - held


def _places(tables: Mapping[tuple[str, ...], _Table], module: nn.Module) -> list[_Place]:
    """Where all that the module needs is, and under the prefix nothing else."""
    needed, own = _lacking(module, set()), set(_own(module))
    if not needed:
        return []
    one = max(needed, key=len)
    ones = [name for name, first in _first_names(module).items() if first == one]
    found = []
    for keys, table in tables.items():
        prefixes = {name.removesuffix(each) for each in ones for name in table if f".{name}".endswith(f".{each}")}
        places = [_Place(keys, prefix, table) for prefix in sorted(prefixes)]
        found += [
            each for each in places if not _lacking(module, each.names()) and each.names() <= own | set(_COUNTERS)
        ]
    return found


def _choose(path: Path, places: list[_Place], key: str | None) -> tuple[_Place, tuple[str, ...]]:
    """The place that is meant, and the keys of the averages that are not."""
    keys = [each.key for each in places]
    if key is not None:
        meant = [each for each in places if each.key == key or each.key.startswith(f"{key}.")]
        if len(meant) != 1:
            problem = "is there in several places" if meant else "holds no weights of this module"
            raise InputError(f"--weights {path}: '{key}' {problem}; {_keys([each.key for each in meant] or keys)}")
        return meant[0], ()
    plain = [each for each in places if not _AVERAGE.search(each.key)] or places
    if len(plain) > 1:
        raise InputError(f"--weights {path}: holds weights of this module in {len(plain)} places; {_keys(keys)}")
    return plain[0], tuple(each for each in keys if each != plain[0].key)


def _nearest(path: Path, tables: Mapping[tuple[str, ...], _Table], module: nn.Module, key: str | None) -> _Place:
    """The place that holds most of what the module needs, to say what it lacks."""
    needed = _lacking(module, set())
    places = [
        _Place(keys, prefix, table)
        for keys, table in tables.items()
        for prefix in {"", *(name.removesuffix(one) for one in needed for name in table if name.endswith(f".{one}"))}
    ]
    meant = [each for each in places if key is None or each.key == key or each.key.startswith(f"{key}.")]
    if not meant:
        raise InputError(f"--weights {path}: has no '{key}'; {_keys(['.'.join(keys) for keys in tables if keys])}")
    return max(meant, key=lambda each: (len(each.names() & needed), -len(each.names())))


def _require_these(path: Path, place: _Place, module: nn.Module) -> None:
    """Refuses weights of another module."""
    held, own = place.names(), set(_own(module))
    for what, names in (("lacks", _lacking(module, held)), ("has too much:", held - own - set(_COUNTERS))):
        if names:
            where = f", {place.key}" if place.key else ""
            few = few_of(sorted(names), _SHOWN_KEYS)
            raise InputError(f"--weights {path}{where}: {what} {few}; give the weights of this very module")


def _require_kinds(path: Path, place: _Place, module: nn.Module) -> None:
    """Refuses numbers that torch would copy and change: quantised ones without their scale, complex ones as real."""
    for name, tensor in _own(module).items():
        given = place.table.get(place.prefix + name)
        if given is not None and not name.endswith(_COUNTERS) and _kind(given) != _kind(tensor):
            types = f"is {_type(given)}, that of the module {_type(tensor)}"
            raise InputError(f"--weights {path}: {name} {types}; give the weights of this very module")


def _require_tied(path: Path, place: _Place, module: nn.Module) -> None:
    """Refuses two values for what is one tensor in the module, which would take the last of them."""
    held: dict[str, str] = {}
    for name, first in _first_names(module).items():
        given = place.table.get(place.prefix + name)
        if given is None:
            continue
        other = held.setdefault(first, name)
        before = place.table[place.prefix + other]
        if before.shape == given.shape and bool((before != given).any()):
            raise InputError(
                f"--weights {path}: {other} and {name} differ, and the module has one tensor for both; "
                "give the weights of this very module"
            )


def _kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    """Whether it holds floating point numbers, or complex ones."""
    return tensor.is_floating_point(), tensor.is_complex()


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _unwrapped(table: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by names without what DDP, FSDP and torch.compile put into them."""
    return {".".join(part for part in name.split(".") if part not in _WRAPPERS): value for name, value in table.items()}


def _keys(keys: list[str]) -> str:
    """The advice to choose one of the keys."""
    shown = [key or "''" for key in keys]
    return f"choose with --weights-key: {', '.join(shown)}" if shown else "leave --weights-key out"
