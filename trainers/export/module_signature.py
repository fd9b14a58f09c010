"""What goes into a module and what comes out: its example inputs with their free axes, and its outputs by name.

A module takes tensors by position or by the names of its forward's arguments, in lists and dicts too, and returns them
in any nesting. An ONNX file has one flat list of each, so every tensor has a name here:

    inputs     as they were named, or the arguments of the forward; what stands inside one of them by its path, `pair.0`
    outputs    the keys of dicts, the fields of named tuples and dataclasses, `output_0` in a list, joined by dots
    free axes  by name: one name is one size, whatever inputs it stands in; the first axis is that of the batch
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree as pytree

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.ir.runtime import Array

INPUT, OUTPUT = "input", "logits"  # of a module that has one
BATCH = "batch"
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_CONSTANTS = (type(None), bool, int, float, str)  # what may stand between the tensors of an output


@dataclass(frozen=True, eq=False)
class ModuleInputs:
    """Example inputs of a module.

    Attributes:
        names: of the tensors, in the order in which the file has them.
        tensors: one for each name.
        axes: the free axes of each tensor and their names, by the number of the axis.
        spec: how the tensors stand in the arguments, (args, kwargs).
    """

    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    axes: tuple[Mapping[int, str], ...]
    spec: pytree.TreeSpec

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call; copies, since a forward may write into its input."""
        args, kwargs = pytree.tree_unflatten([tensor.clone() for tensor in self.tensors], self.spec)
        return tuple(args), dict(kwargs)

    def call(self, module: nn.Module) -> Any:
        """What the module returns for these inputs."""
        args, kwargs = self.arguments()
        return module(*args, **kwargs)

    def per_axis(self, value: Callable[[str], object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A value for each free axis, by its name, in the place of each tensor among the arguments."""
        shapes = [{axis: value(name) for axis, name in axes.items()} for axes in self.axes]
        args, kwargs = pytree.tree_unflatten(shapes, self.spec)
        return tuple(args), dict(kwargs)

    def feeds(self) -> dict[str, Array]:
        """The arrays by their names."""
        return {name: tensor.detach().numpy() for name, tensor in zip(self.names, self.tensors, strict=True)}

    @property
    def batch(self) -> str | None:
        """The name of the axis of the batch; None where its size is fixed."""
        return next((axes[0] for axes in self.axes if 0 in axes), None)

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each free axis by its name."""
        return {
            name: tensor.shape[axis]
            for tensor, axes in zip(self.tensors, self.axes, strict=True)
            for axis, name in axes.items()
        }

    def resized(self, sizes: Mapping[str, int]) -> ModuleInputs:
        """The inputs with other sizes of free axes; values repeat where they don't suffice."""
        tensors = []
        for tensor, axes in zip(self.tensors, self.axes, strict=True):
            for axis, name in axes.items():
                if name in sizes and sizes[name] != tensor.shape[axis]:
                    tensor = tensor.index_select(axis, torch.arange(sizes[name]) % tensor.shape[axis])
            tensors.append(tensor)
        return replace(self, tensors=tuple(tensors))

    def pair(self) -> ModuleInputs:
        """At least two samples, also where the file will take one: BatchNorm has no statistics of one value."""
        if self.batch is not None:
            return self if self.sizes[self.batch] > 1 else self.resized({self.batch: 2})
        if any(tensor.dim() == 0 or len(tensor) != 1 for tensor in self.tensors):
            return self
        return replace(self, tensors=tuple(torch.cat([tensor, tensor]) for tensor in self.tensors))

    def double(self) -> ModuleInputs:
        """Floating-point inputs in float64."""
        tensors = (tensor.double() if tensor.is_floating_point() else tensor for tensor in self.tensors)
        return replace(self, tensors=tuple(tensors))

    def __str__(self) -> str:
        return ", ".join(f"{str(tensor.dtype)[6:]} {tuple(tensor.shape)}" for tensor in self.tensors)


Example = torch.Tensor | ModuleInputs


def as_inputs(example: Example, name: str = INPUT) -> ModuleInputs:
    """One tensor, batch first, as the inputs of a module; inputs are what they are."""
    if isinstance(example, ModuleInputs):
        return example
    return ModuleInputs((name,), (example,), ({0: BATCH},), pytree.tree_structure(((example,), {})))


def named_inputs(
    module: nn.Module, tensors: Mapping[str, torch.Tensor], axes: Sequence[Mapping[int, str]]
) -> ModuleInputs:
    """Inputs by their names in the file, given to the forward by name where it has such arguments, else in order.

    Args:
        module: whose forward takes them.
        tensors: by name.
        axes: the free axes of each.

    Raises:
        InputError: the forward takes fewer, needs more, or has arguments of these names at other positions.
    """
    names = tuple(tensors)
    values = tuple(tensors.values())
    args, kwargs = ((), dict(tensors)) if takes_by_name(module, names) else (values, {})
    return ModuleInputs(names, values, tuple(axes), pytree.tree_structure((args, kwargs)))


def bare_module(module: nn.Module) -> nn.Module:
    """The module inside what DataParallel, DistributedDataParallel, AveragedModel and torch.compile put around it."""
    inner = getattr(module, "_orig_mod", module.module if isinstance(module, _WRAPPERS) else None)
    return bare_module(inner) if isinstance(inner, nn.Module) else module


def needed_arguments(module: nn.Module) -> list[str]:
    """The arguments that a forward can't do without."""
    return [
        each.name
        for each in inspect.signature(module.forward).parameters.values()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]


def takes_by_name(module: nn.Module, names: Sequence[str]) -> bool:
    """Whether inputs of these names are given to the arguments of their names; else they are given in order.

    Raises:
        InputError: the forward takes fewer, needs more, or has arguments of these names at other positions.
    """
    known = list(inspect.signature(module.forward).parameters.values())
    kind = type(module).__name__
    positional = [each for each in known if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    by_name = [each.name for each in known if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    needed = needed_arguments(module)
    takes = f"{kind}.forward takes {', '.join(each.name for each in known) or 'nothing'}"
    if set(names) <= set(by_name):
        if lacking := [name for name in needed if name not in names]:
            raise InputError(f"{takes}: the inputs {', '.join(names)} leave out {', '.join(lacking)}")
        in_order = [each.name for each in positional[: len(names)]] == list(names)
        return not in_order
    if any(each.kind is each.VAR_POSITIONAL for each in known):
        return False
    if any(each.kind is each.VAR_KEYWORD for each in known) and not positional:
        return True
    if len(names) > len(positional) or len(names) < len(needed):
        raise InputError(f"{takes}: {len(names)} inputs ({', '.join(names)}) do not fit")
    for name, argument in zip(names, positional, strict=False):
        if name in by_name and name != argument.name:
            raise InputError(
                f"{takes}: in the order of the inputs, '{name}' would be given to '{argument.name}'; name all of them "
                "as the forward does, or in its order"
            )
    return False


def traced_shapes(program: torch.export.ExportedProgram) -> dict[str, Sequence[int | torch.SymInt]]:
    """The shapes of all tensors that the graph of a program takes, by its names for them; a free side is a symbol."""
    given = {node.name: node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")}
    return {name: value.shape for name, value in given.items() if isinstance(value, torch.Tensor)}


def output_tensors(out: object, owner: str, taken: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors that a module returns, by their names in a file.

    Args:
        out: what it returned.
        owner: whose it is, in messages.
        taken: names that inputs have.

    Raises:
        InputError: something among it is no tensor.
    """
    leaves = list(_leaves(out, (), owner))
    found: dict[str, torch.Tensor] = {}
    for path, tensor in leaves:
        only_numbered = len(leaves) == 1 and all(isinstance(step, int) for step in path)
        first = f"output_{path[0]}" if path and isinstance(path[0], int) else "".join(map(str, path[:1]))
        name = OUTPUT if only_numbered else ".".join([first, *map(str, path[1:])])
        while name in found or name in taken:
            name += "_out"
        found[name] = tensor
    if not found:
        raise InputError(f"{owner} returns a {type(out).__name__} without a tensor; return one, or several")
    return found


def _leaves(value: object, path: tuple[object, ...], owner: str) -> Iterator[tuple[tuple[object, ...], torch.Tensor]]:
    """Each tensor and its path."""
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    if isinstance(value, Mapping):
        parts: Sequence[tuple[object, object]] = list(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = list(zip(value._fields, value, strict=True))
    elif isinstance(value, list | tuple):
        parts = list(enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(each.name, getattr(value, each.name)) for each in dataclasses.fields(value)]
    elif isinstance(value, _CONSTANTS):
        return
    else:
        raise InputError(
            f"{owner} returns a {type(value).__name__}; wrap it in a module that returns tensors, or tuples, lists, "
            "dicts or dataclasses of tensors"
        )
    for key, part in parts:
        yield from _leaves(part, (*path, key), owner)
