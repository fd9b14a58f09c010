"""Example inputs of a module: as `--input` describes them, and as Python gives them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.ir.runtime import Array

from .module_signature import BATCH, INPUT, ModuleInputs, named_inputs

_SPEC = re.compile(r"(?P<name>[^:]+):(?P<shape>[^:]*)(:(?P<type>[^:]+))?(:(?P<range>[^:]+))?")
_SIDE = re.compile(r"[1-9]\d{0,8}|[A-Za-wyzA-WYZ_][A-Za-wyz0-9A-WYZ_]*(=[1-9]\d{0,8})?")
_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)")
_TYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_BATCH_SIZE, _FREE_SIZE = 4, 32  # of an example, where no other is written


@dataclass(frozen=True)
class InputText:
    """One input as `--input` writes it: NAME:SHAPE[:DTYPE[:LOW..HIGH]].

    Attributes:
        name: of the input in the file.
        sides: a number, or the name of a free axis, for each axis.
        dtype: of its values.
        low: the smallest value of the example; None for the type's own range.
        high: the largest one.
        sizes: those of free axes in the example, where they are written.
    """

    name: str
    sides: tuple[int | str, ...]
    dtype: torch.dtype
    low: float | None
    high: float | None
    sizes: Mapping[str, int]

    @property
    def axes(self) -> dict[int, str]:
        """The free axes."""
        return {axis: side for axis, side in enumerate(self.sides) if isinstance(side, str)}

    def example(self, sizes: Mapping[str, int], generator: torch.Generator) -> torch.Tensor:
        """Random values: standard normal, 0 and 1 for whole numbers, 0 to 255 for bytes, unless a range is written."""
        shape = [side if isinstance(side, int) else sizes[side] for side in self.sides]
        if self.dtype.is_floating_point:
            if self.low is None or self.high is None:
                return torch.randn(shape, generator=generator).to(self.dtype)
            return (self.low + (self.high - self.low) * torch.rand(shape, generator=generator)).to(self.dtype)
        usual = 255 if self.dtype is torch.uint8 else 1
        low, high = (0, usual) if self.low is None or self.high is None else (int(self.low), int(self.high))
        return torch.randint(low, high + 1, shape, generator=generator).to(self.dtype)


def parse_input(text: str) -> InputText:
    """Reads NAME:SHAPE[:DTYPE[:LOW..HIGH]], as `image:Nx3xHxW` or `ids:NxT=128:int64:0..30521`.

    Raises:
        InputError: it is written in another way.
    """
    found = _SPEC.fullmatch(text)
    if found is None:
        raise InputError(f"input '{text}': write NAME:SHAPE[:DTYPE[:LOW..HIGH]], as image:Nx3x32x32 or ids:NxT:int64")
    sides = found["shape"].split("x")
    if wrong := [side for side in sides if not _SIDE.fullmatch(side)]:
        raise InputError(
            f"input '{text}': '{wrong[0]}' is no side; write numbers, and names without the letter x for free axes, "
            "as Nx3xHxW, or NxT=128 with a size for the example"
        )
    dtype = found["type"] or "float32"
    if dtype not in _TYPES:
        raise InputError(f"input '{text}': no type '{dtype}'; there are {', '.join(_TYPES)}")
    low = high = None
    if found["range"] is not None:
        bounds = _RANGE.fullmatch(found["range"])
        if bounds is None or float(bounds[1]) > float(bounds[2]) or dtype == "bool":
            raise InputError(
                f"input '{text}': '{found['range']}' is no range; write the least and the largest, as 0..9"
            )
        low, high = float(bounds[1]), float(bounds[2])
        _require_held(text, low, high, _TYPES[dtype])
    free = [side.partition("=") for side in sides if not side.isdigit()]
    return InputText(
        found["name"],
        tuple(int(side) if side.isdigit() else side.partition("=")[0] for side in sides),
        _TYPES[dtype],
        low,
        high,
        {name: int(size) for name, _, size in free if size},
    )


def _require_held(text: str, low: float, high: float, dtype: torch.dtype) -> None:
    """Refuses whole numbers that their type does not hold."""
    if dtype.is_floating_point:
        return
    limits = torch.iinfo(dtype)
    if low < limits.min or high > limits.max or high >= 2.0**63:
        raise InputError(f"input '{text}': {str(dtype)[6:]} holds {limits.min} to {limits.max}; write a range in it")


def example_inputs(module: nn.Module, texts: Sequence[str]) -> ModuleInputs:
    """Random inputs of a module, as `--input` describes them.

    Args:
        module: whose forward takes them.
        texts: see `parse_input`.

    Raises:
        InputError: one of them is written in another way, or they don't fit the forward or each other.
    """
    inputs = [parse_input(text) for text in texts]
    names = [each.name for each in inputs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"input '{twice[0]}': is given twice")
    batch = {each.axes[0] for each in inputs if 0 in each.axes}
    if len(batch) > 1:
        raise InputError(
            f"the batch has several names ({', '.join(sorted(batch))}); write the same first axis for each"
        )
    sizes = {name: _BATCH_SIZE if name in batch else _FREE_SIZE for each in inputs for name in each.axes.values()}
    for each in inputs:
        for name, size in each.sizes.items():
            if any(other.sizes.get(name, size) != size for other in inputs):
                raise InputError(f"the axis {name} has several sizes; write one, where it stands first")
            sizes[name] = size
    generator = torch.Generator().manual_seed(0)
    tensors = {each.name: each.example(sizes, generator) for each in inputs}
    return named_inputs(module, tensors, [each.axes for each in inputs])


def given_inputs(module: nn.Module, example: object, dynamic_shapes: object = None) -> ModuleInputs:
    """Inputs as Python gives them.

    Args:
        module: whose forward takes them.
        example: a tensor or an array, a tuple of the arguments in order, or a dict of them by name; an argument may be
            a list or a dict of tensors.
        dynamic_shapes: as torch.export takes them, for a flat list of inputs: for each its free axes, a dict from the
            axis to a name or a `torch.export.Dim`; in the order of the inputs, or by their names. None frees the first
            axis of each.

    Raises:
        InputError: something else, or arguments that the forward does not take.
    """
    paths, spec = pytree.tree_flatten_with_path(given_arguments(example))
    if not paths or not all(isinstance(leaf, torch.Tensor) for _, leaf in paths):
        raise InputError(
            "example_inputs: give a batch of inputs of the module: a tensor of shape (N, ...), a tuple of tensors in "
            "the order of its forward's arguments, or a dict of tensors by their names"
        )
    names = _path_names(module, [path for path, _ in paths], given_by_name=isinstance(example, Mapping))
    tensors = tuple(leaf for _, leaf in paths)
    return ModuleInputs(names, tensors, _free_axes(dynamic_shapes, names, tensors), spec)


def given_arguments(example: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, by position and by name, the arrays among them as tensors.

    Args:
        example: one argument, a tuple of them in order, or a dict of them by name.

    Raises:
        InputError: an array that is no tensor.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example, Mapping):
        kwargs = dict(example)
    else:
        args = tuple(example) if isinstance(example, tuple | list) else (example,)
    args, kwargs = pytree.tree_map_only(np.ndarray, _tensor, (args, kwargs))
    return args, kwargs


def _tensor(array: Array) -> torch.Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(array))
    except TypeError:  # texts, and types that torch has not
        raise InputError(f"example_inputs: an array of {array.dtype} is no tensor; give numbers") from None


def _path_names(module: nn.Module, paths: Sequence[tuple[Any, ...]], *, given_by_name: bool) -> tuple[str, ...]:
    """The names of tensors by where they stand in the arguments."""
    if len(paths) == 1 and not given_by_name and len(paths[0]) == 2:
        return (INPUT,)
    arguments = [
        each.name
        for each in inspect.signature(module.forward).parameters.values()
        if each.kind is not each.VAR_POSITIONAL
    ]
    names = []
    for _, first, *rest in paths:
        key = getattr(first, "key", getattr(first, "idx", None))
        if isinstance(key, int):
            key = arguments[key] if key < len(arguments) else f"{INPUT}_{key}"
        inner = [str(getattr(step, "key", getattr(step, "idx", getattr(step, "name", "")))) for step in rest]
        names.append(".".join([str(key), *inner]))
    return tuple(names)


def _free_axes(given: object, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> tuple[Mapping[int, str], ...]:
    """The free axes of each input and their names."""
    if given is None:
        return tuple({0: BATCH} if tensor.dim() else {} for tensor in tensors)
    if isinstance(given, Mapping) and given and all(isinstance(key, int) for key in given) and len(names) == 1:
        given = (given,)
    if isinstance(given, Mapping):
        if unknown := [key for key in given if key not in names]:
            raise InputError(f"dynamic_shapes: there is no input {unknown[0]!r}; there are {', '.join(names)}")
        shapes = [given.get(name) for name in names]
    elif isinstance(given, list | tuple) and len(given) == len(names):
        shapes = list(given)
    else:
        raise InputError(f"dynamic_shapes: give the free axes of each input, as {{'{names[0]}': {{0: 'batch'}}}}")
    return tuple(_axes_of(name, shape, tensor) for name, shape, tensor in zip(names, shapes, tensors, strict=True))


def _axes_of(name: str, shape: object, tensor: torch.Tensor) -> dict[int, str]:
    """The free axes of one input."""
    if shape is None:
        return {}
    if isinstance(shape, list | tuple):
        shape = dict(enumerate(shape))
    free = {}
    for axis, value in shape.items() if isinstance(shape, Mapping) else ((None, None),):
        if not isinstance(axis, int) or not -tensor.dim() <= axis < tensor.dim():
            raise InputError(
                f"dynamic_shapes of '{name}': {shape!r} is no dict from an axis of {tuple(tensor.shape)} to a name"
            )
        axis %= tensor.dim()
        if value is None or isinstance(value, int) or value is torch.export.Dim.STATIC:
            continue
        if value in (torch.export.Dim.AUTO, torch.export.Dim.DYNAMIC):
            free[axis] = BATCH if axis == 0 else f"{name}_{axis}"
        else:
            free[axis] = value if isinstance(value, str) else getattr(value, "__name__", str(value))
    return free
