"""Samples for a module, from a loader and in an order of their own, and a state that is put back.

A loader gives tensors, tuples of inputs and labels, or dicts. Each sample is ordered by a digest of its values
(`graph_passes.noise_average.samples`), so that neither the order of the loader nor its batches change a result.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from vsfix.graph_passes.errors import DataError, InputError, VsfixError, device_fault, first_line
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.noise_average.samples import SampleSet, digests_of
from vsfix.graph_passes.statistics.batches import samples_in
from vsfix.trainers.data.loader_order import seeded_batches
from vsfix.trainers.export.noise_reach import random_states_kept

MOST_SAMPLES = 1024  # more bring next to nothing, and all of them are in memory at once
MOST_SEED = 2**63 - 1
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a call, by position and by name."""


@dataclass(frozen=True)
class ModuleSamples:
    """Samples that a module can be called with.

    Attributes:
        samples: the tensors of a call as arrays, in an order of their own.
        form: what stands around the tensors in a call.
        device: of the module.
    """

    samples: SampleSet
    form: _Form
    device: torch.device

    def __len__(self) -> int:
        return len(self.samples)

    def call(self, tensors: Mapping[str, Any]) -> Call:
        """The arguments for some samples, given their arrays or tensors by name; a forward may write into them."""
        return self.form.call(tensors, self.device)

    @classmethod
    def of(cls, module: nn.Module, loader: Iterable[Any], most: int, seed: int = 0) -> ModuleSamples:
        """Draws samples from a loader, no more of its batches than are needed.

        Args:
            module: what they are for.
            loader: gives tensors, tuples or lists that begin with the inputs, or dicts of inputs by name.
            most: how many samples.
            seed: of the order in which a DataLoader is read, also of one that would begin with the first rows.

        Raises:
            InputError: a number that is out of range, or something that is no loader.
            DataError: no samples, samples of several shapes, or a loader that fails.
        """
        most = whole_number("samples", most, 2, MOST_SAMPLES)
        if isinstance(loader, (torch.Tensor, Mapping, str)) or not isinstance(loader, Iterable):
            raise InputError("the loader must give batches one after the other: a DataLoader, or a list of tensors")
        batches: list[dict[str, Array]] = []
        form: _Form | None = None
        count = 0
        for given in _batches(loader, seed):
            here, arrays = _Form.read(_arguments(module, given))
            if form is not None and here != form:
                raise DataError("the batches of the loader have different forms")
            form = here
            rows = samples_in(arrays)
            batches.append({name: array[: most - count] if array.ndim else array for name, array in arrays.items()})
            count += rows
            if count >= most:
                break
        if form is None or count == 0:
            raise DataError("the loader gives no samples")
        shapes = {name: {batch[name].shape[1:] for batch in batches} for name in batches[0]}
        several = next((found for found in shapes.values() if len(found) > 1), None)
        if several is not None:
            shapes_found = " and ".join(map(str, sorted(several)))
            raise DataError(f"samples of the shapes {shapes_found}: give samples of one shape")
        first = next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
        return cls(SampleSet.of(batches).without_copies(), form, first)


@dataclass(frozen=True)
class _Form:
    """The form of a call without its tensors: their places, their types, and everything that is no tensor."""

    spec: pytree.TreeSpec
    types: tuple[torch.dtype | None, ...]
    others: tuple[Any, ...]

    @classmethod
    def read(cls, call: Call) -> tuple[_Form, dict[str, Array]]:
        """The form of a call, and its tensors as arrays by the number of the leaf."""
        leaves, spec = pytree.tree_flatten(call)
        tensors = [torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
        types = tuple(leaf.dtype if isinstance(leaf, torch.Tensor) else None for leaf in tensors)
        others = tuple(None if isinstance(leaf, torch.Tensor) else leaf for leaf in tensors)
        arrays = {_name(n): to_array(leaf) for n, leaf in enumerate(tensors) if isinstance(leaf, torch.Tensor)}
        if not arrays or not any(array.ndim for array in arrays.values()):
            raise DataError("a batch of the loader holds no tensor with a batch axis")
        sizes = {len(array) for array in arrays.values() if array.ndim}
        if len(sizes) > 1:
            raise DataError(f"the tensors of a batch hold {' and '.join(map(str, sorted(sizes)))} samples")
        return cls(spec, types, others), arrays

    def call(self, tensors: Mapping[str, Any], device: torch.device) -> Call:
        """The arguments of a call with these tensors."""
        leaves = []
        for number, dtype in enumerate(self.types):
            if dtype is None:
                leaves.append(self.others[number])
            else:
                leaves.append(torch.as_tensor(tensors[_name(number)]).to(device, dtype, copy=True))
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return tuple(args), dict(kwargs)


def copied(call: Call) -> Call:
    """A call whose tensors a forward may write into."""
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (tuple(call[0]), dict(call[1])))
    return tuple(args), dict(kwargs)


def keys_of(call: Call) -> tuple[tuple[int, ...], ...]:
    """The seeds of the noise of each sample of a call: equal samples have equal ones."""
    _, arrays = _Form.read(call)
    return tuple((*digest, 0) for digest in digests_of(arrays))


def to_array(tensor: torch.Tensor) -> Array:
    """A copy on the CPU; a type that numpy does not have becomes float32."""
    tensor = tensor.detach().cpu()
    narrow = tensor.dtype in (torch.bfloat16, torch.float16)
    array: Array = (tensor.float() if narrow else tensor).numpy()
    return array.copy()


def named_outputs(out: Any) -> dict[str, torch.Tensor]:
    """The tensors of what a module returns, by their place in it; `output` where it returns one tensor."""
    leaves, _ = pytree.tree_flatten_with_path(out)
    return {f"output{pytree.keystr(path)}": leaf for path, leaf in leaves if isinstance(leaf, torch.Tensor)}


def whole_number(name: str, value: Any, least: int, most: int) -> int:
    """A whole number that an option takes, of whatever type.

    Raises:
        InputError: it is none, or out of range.
    """
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise InputError(f"{name}: give a whole number, {least} to {most}, not {' '.join(repr(value).split())}")
    return number


def call_of(module: nn.Module, call: Call) -> Any:
    """Calls a module; its output.

    Raises:
        InputError: its forward fails.
        OutOfMemoryError: the memory of the device does not suffice.
        MissingComponentError: the device does not answer.
    """
    args, kwargs = call
    try:
        return module(*args, **kwargs)
    except VsfixError:
        raise
    except Exception as error:  # a forward is foreign code: it may raise anything
        fault = device_fault(error, "the module", "give fewer samples")
        raise fault or InputError(f"the module can't be run on the samples: {first_line(error)}") from error


def _name(number: int) -> str:
    """The name of a leaf of a call; names sort as the leaves stand."""
    return f"input_{number:04d}"


def _batches(loader: Iterable[Any], seed: int) -> Iterator[Any]:
    """The batches of a loader."""
    try:
        yield from seeded_batches(loader, seed)
    except Exception as error:  # a data set is foreign code
        raise DataError(f"the loader fails: {first_line(error)}") from error


def _arguments(module: nn.Module, given: Any) -> Call:
    """The arguments of a call from a batch of a loader: labels are left out."""
    parameters = [p for p in inspect.signature(module.forward).parameters.values() if p.name != "self"]
    if isinstance(given, Mapping):
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names = {p.name for p in parameters}
        chosen = {str(name): value for name, value in given.items() if takes_all or name in names}
        if not chosen:
            raise DataError(f"the module takes none of {', '.join(map(str, given))}")
        return (), chosen
    if isinstance(given, (tuple, list)):
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        needed = sum(p.kind in positional and p.default is p.empty for p in parameters)
        return tuple(given[: max(needed, 1)]), {}
    return (given,), {}


@contextmanager
def state_kept(module: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Puts back everything of a module but its parameters, and the random generators, whatever happens inside.

    The module is in eval mode inside, and no parameter takes a gradient unless it is asked for.
    """
    parts = [(part, part.training) for part in module.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    buffers = [(part, dict(part._buffers)) for part in module.modules()]
    values = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    devices = sorted({tensor.device.index or 0 for tensor in module.parameters() if tensor.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(random_states_kept())
        stack.enter_context(torch.random.fork_rng(devices))
        stack.callback(_put_back, parts, flags, buffers, values)
        fast = torch.backends.mha.get_fastpath_enabled()  # of transformers in eval mode, which hides their dropouts
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        module.eval()
        if not gradients:
            module.requires_grad_(False)
        yield


def _put_back(
    parts: Sequence[tuple[nn.Module, bool]],
    flags: Sequence[tuple[nn.Parameter, bool]],
    buffers: Sequence[tuple[nn.Module, dict[str, torch.Tensor | None]]],
    values: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    """Undoes what `state_kept` allows."""
    for part, training in parts:
        part.training = training
    for parameter, needs in flags:
        if parameter.requires_grad != needs:
            parameter.requires_grad = needs
    for part, held in buffers:  # a forward may put other tensors in their place
        moved = {name: tensor for name, tensor in part._buffers.items() if _is_elsewhere(tensor, held.get(name))}
        part._buffers.clear()
        part._buffers.update(held | moved)
    for buffer, before in values:
        if not torch.equal(buffer, before):
            with torch.inference_mode() if buffer.is_inference() else torch.no_grad():
                buffer.copy_(before)


def _is_elsewhere(tensor: torch.Tensor | None, before: torch.Tensor | None) -> bool:
    """Whether a buffer stands on another device than before, as after a move of the whole module."""
    return tensor is not None and before is not None and tensor.device != before.device
