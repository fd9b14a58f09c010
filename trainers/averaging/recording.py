"""The structure of a module, from the operators of one forward: its units, what follows each, what its outputs are.

A unit is a BatchNorm, or a linear layer with a non-linearity and no BatchNorm behind it, that noise reaches; `units` of
`graph_passes.estimators` says the same of a graph. What follows it is the largest region of elementwise operators that
z enters and one value leaves (`regions`).

Operators are recorded as they run, so that no part has to be traceable: whatever path the forward takes, that path is
what is repaired. A forward that takes another path for other samples is refused where that shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs
import torch
from torch import nn
from torch.utils import _pytree as pytree

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.estimators.activations import MAX_NODES
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.noise_average.divergence import OutputKind, recognise_outputs

from .noisy_forward import NOISE, UNIT, UNIT_FUNCTIONS, UNNAMED, Key, Observer
from .regions import COPIES, ELEMENTWISE, Operator, Region, Value

_BATCH_NORMS = frozenset({nn.functional.batch_norm, torch.batch_norm})
_STATISTICS = {nn.functional.batch_norm: 1, torch.batch_norm: 3}  # the place of the running mean
_VIEWS = COPIES | frozenset(
    "view _unsafe_view reshape transpose permute t squeeze unsqueeze slice flatten expand as_strided view_as".split()
)
_TO_OUTPUT = _VIEWS | frozenset("_softmax _log_softmax sigmoid".split())
# What the last operators of an output are called where outputs are recognised.
_NAMES = {
    "_softmax": "Softmax",
    "_log_softmax": "LogSoftmax",
    "sigmoid": "Sigmoid",
    "hardsigmoid": "HardSigmoid",
    "addmm": "Gemm",
    "mm": "MatMul",
    "bmm": "MatMul",
    "add": "Add",
    "mean": "ReduceMean",
    "avg_pool2d": "AveragePool",
    "_adaptive_avg_pool2d": "GlobalAveragePool",
    "upsample_bilinear2d": "Resize",
    "upsample_nearest2d": "Resize",
}


@dataclass(frozen=True, eq=False)
class ModuleUnit:
    """One place of a module with a free scale and shift.

    Attributes:
        name: of the part; further uses of it have a number.
        part: the name of the part.
        key: of z.
        shape: of z for the samples that were recorded.
        axis: of its channels, 1 or -1.
        channels: C.
        region: what follows.
        output: the key of h; that of z where nothing elementwise follows.
        is_batch_norm: or a linear layer.
        is_last: the linear layer that writes an output.
    """

    name: str
    part: str
    key: Key
    shape: tuple[int, ...]
    axis: int
    channels: int
    region: Region
    output: Key
    is_batch_norm: bool
    is_last: bool


@dataclass(frozen=True, eq=False)
class BatchNormUse:
    """One use of a BatchNorm: the part, and the key of what it gives."""

    part: str
    key: Key


@dataclass(frozen=True, eq=False)
class _Use:
    """One call of a BatchNorm or a linear layer: the part, the key of z, the numbers of its input and of z."""

    part: str
    key: Key
    x: int
    z: int
    is_batch_norm: bool
    is_linear_layer: bool


class Recording(Observer):
    """The operators of one forward.

    Args:
        module: what runs.

    Attributes:
        cost: multiplications of the linear operators.
        values: how many numbers all operators wrote.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._owners = weight_owners(module)
        self._numbers: dict[int, int] = {}
        self._tensors: list[torch.Tensor] = []
        self._keys: dict[int, Key] = {}
        self._constant: set[int] = set()
        self._noisy: set[int] = set()
        self._operators: list[Operator] = []
        self._uses: list[_Use] = []
        self._pending: _Use | None = None
        self._outputs: set[int] = set()
        self.cost = 0.0
        self.values = 0.0

    def given(self, tensors: Sequence[torch.Tensor]) -> None:
        """Takes the inputs of the forward as values."""
        for place, tensor in enumerate(tensors):
            self._keys[self._number(tensor)] = Key("input", place, "input")

    def computed(self, func: Any, args: Sequence[Any], out: Any) -> None:
        """Counts what an operator costs."""
        name = func.overloadpacket.__name__
        if isinstance(out, torch.Tensor):
            self.values += out.numel()
            if name == "convolution":
                self.cost += float(out.numel()) * args[1][0].numel()
            elif name in ("addmm", "mm", "bmm", "baddbmm"):
                self.cost += float(out.numel()) * args[1 if name in ("addmm", "baddbmm") else 0].shape[-1]

    def unit(self, key: Key, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], z: torch.Tensor) -> Any:
        """Notes whose z it is."""
        part = owner_of(self._owners, func, args, kwargs, key.scope)
        if part is not None:
            x = self._read(args[0] if args else kwargs["input"])
            linear = isinstance(self._module.get_submodule(part), nn.Linear)
            self._pending = _Use(part, key, x, -1, func in _BATCH_NORMS, linear)
        return z

    def made(self, key: Key, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Notes an operator."""
        reads: list[int] = []

        def pattern(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            reads.append(self._read(leaf))
            return Value(reads[-1])

        given = pytree.tree_map(pattern, (tuple(args), dict(kwargs)))
        written = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        writes = tuple(self._number(leaf) for leaf in written)
        is_constant = all(number in self._constant for number in reads) and key.operator not in (UNIT, NOISE)
        is_noisy = any(number in self._noisy for number in reads) or isinstance(func, Noise) or func is UNNAMED
        for number in writes:
            self._keys[number] = key
            if is_constant:
                self._constant.add(number)
            if is_noisy:
                self._noisy.add(number)
        self._operators.append(Operator(key, func, given[0], given[1], tuple(reads), writes))
        if key.operator == UNIT and self._pending is not None:
            use = self._pending
            self._uses.append(_Use(use.part, key, use.x, writes[0], use.is_batch_norm, use.is_linear_layer))
            self._pending = None

    def _number(self, tensor: torch.Tensor) -> int:
        """A new number for what a tensor holds from now on."""
        self._tensors.append(tensor)  # so that no other one gets its identity
        number = len(self._tensors) - 1
        self._numbers[id(tensor)] = number
        return number

    def _read(self, tensor: torch.Tensor) -> int:
        """The number of what a tensor holds; what no operator made is a constant."""
        if id(tensor) not in self._numbers:
            self._constant.add(self._number(tensor))
        return self._numbers[id(tensor)]

    def returned(self, tensors: Mapping[str, torch.Tensor], noisy_parts: Sequence[str]) -> None:
        """Takes what the forward returned, and ends the recording.

        Args:
            tensors: by name.
            noisy_parts: parts that draw noise which no call shows; everything behind them is noisy.
        """
        self._named = {name: self._read(tensor) for name, tensor in tensors.items()}
        self._outputs = set(self._named.values())
        for operator in self._operators:  # in order
            scope = operator.key.scope
            inside = any(scope == part or scope.startswith(f"{part}.") or not part for part in noisy_parts)
            if inside or any(number in self._noisy for number in operator.reads):
                self._noisy.update(operator.writes)
        self._shapes = [tuple(tensor.shape) for tensor in self._tensors]
        readers: dict[int, list[int]] = {}
        for place, operator in enumerate(self._operators):
            for number in dict.fromkeys(operator.reads):
                readers.setdefault(number, []).append(place)
        self._readers = readers
        self._place = {number: place for place, op in enumerate(self._operators) for number in op.writes}

    def batch_norms(self) -> tuple[BatchNormUse, ...]:
        """Every use of a BatchNorm, in order."""
        return tuple(BatchNormUse(use.part, use.key) for use in self._uses if use.is_batch_norm)

    def units(self) -> tuple[ModuleUnit, ...]:
        """The units that noise reaches, in order."""
        found = [unit for use in self._uses if use.x in self._noisy for unit in self._unit(use)]
        counts: dict[str, int] = {}
        named = []
        for unit in found:
            counts[unit.part] = counts.get(unit.part, 0) + 1
            number = counts[unit.part]
            name = unit.part if number == 1 else f"{unit.part}#{number}"
            named.append(ModuleUnit(**{**vars(unit), "name": name}))
        return tuple(named)

    def _unit(self, use: _Use) -> Iterator[ModuleUnit]:
        """The unit of one use; none where a linear layer has nothing behind it that says what is right."""
        shape, axis = self._shapes[use.z], -1 if use.is_linear_layer else 1
        if len(shape) < 2:
            return
        repeated = sum(other.part == use.part for other in self._uses) > 1
        region = self._region(use.z)
        if repeated and region.sides:  # what is added may come from another use, which waits for the same a and b
            region = Region(use.z, use.z)
        last = not use.is_batch_norm and self._writes_output(use.z)
        if not use.is_batch_norm and not last and region.is_linear:
            return
        if last:
            region = Region(use.z, use.z)
        output = self._keys[region.output]
        yield ModuleUnit(use.part, use.part, use.key, shape, axis, shape[axis], region, output, use.is_batch_norm, last)

    def _writes_output(self, number: int) -> bool:
        """Whether a value is returned, but for views and the form of the scores."""
        while number not in self._outputs:
            readers = self._readers.get(number, [])
            if len(readers) != 1 or self._operators[readers[0]].name not in _TO_OUTPUT:
                return False
            number = self._operators[readers[0]].writes[0]
        return True

    def _region(self, z: int) -> Region:
        """The largest region downstream of z that one value leaves."""
        inside: set[int] = {z}
        members: list[int] = []
        sides: dict[str, Key] = {}
        constants: dict[int, torch.Tensor] = {}
        best = Region(z, z)
        waiting = list(self._readers.get(z, ()))
        while waiting and len(members) < MAX_NODES:
            waiting.sort()
            place = waiting.pop(0)
            operator = self._operators[place]
            taken = self._taken(operator, inside, z)
            if taken is None:
                continue
            members.append(place)
            sides |= taken[0]
            constants |= taken[1]
            out = operator.writes[0]
            inside.add(out)
            waiting += [reader for reader in self._readers.get(out, ()) if reader not in (*waiting, *members)]
            if [number for number in inside if self._leaves(number, members)] == [out]:
                operators = tuple(self._operators[member] for member in members)
                best = Region(z, out, operators, dict(sides), dict(constants))
        return best

    def _leaves(self, number: int, members: Sequence[int]) -> bool:
        """Whether something outside of a region reads a value of it."""
        readers = self._readers.get(number, [])
        return number in self._outputs or not readers or any(reader not in members for reader in readers)

    def _taken(
        self, operator: Operator, inside: set[int], z: int
    ) -> tuple[dict[str, Key], dict[int, torch.Tensor]] | None:
        """The sides and the constants that an operator of the region reads; None where it can't be part of it."""
        if operator.name not in ELEMENTWISE or len(operator.writes) != 1:
            return None
        shape = self._shapes[z]
        if self._shapes[operator.writes[0]] != shape:
            return None
        sides: dict[str, Key] = {}
        constants: dict[int, torch.Tensor] = {}
        for number in operator.reads:
            if number in inside:
                continue
            if number in self._constant:
                if not self._is_per_channel(number, shape, z):
                    return None
                constants[number] = self._tensors[number]
                continue
            known = self._place.get(number, -1) < self._place[z]
            if operator.name != "add" or not known or self._shapes[number] != shape:
                return None
            sides[str(number)] = self._keys[number]
        return sides, constants

    def _is_per_channel(self, number: int, shape: tuple[int, ...], z: int) -> bool:
        """Whether a constant is one value, or one for each channel, beside z."""
        own = self._shapes[number]
        if self._tensors[number].numel() == 1:
            return True
        linear = any(use.z == z and use.is_linear_layer for use in self._uses)
        axis = len(shape) - 1 if linear else 1
        sides = (1,) * (len(shape) - len(own)) + own
        return len(sides) == len(shape) and sides[axis] == shape[axis] == self._tensors[number].numel()

    def output_kinds(self, outputs: Mapping[str, Array], told: Mapping[str, str] | None) -> dict[str, OutputKind]:
        """How each output is read; see `divergence.recognise_outputs`, which asks for the last operators.

        Args:
            outputs: that the module gives, by name.
            told: the meaning of outputs, by name, where a person says it.
        """
        return recognise_outputs(gs.Graph(outputs=[self._last_nodes(name) for name in outputs]), outputs, told)

    def _last_nodes(self, name: str) -> gs.Variable:
        """An output with the two operators that end it, under the names of a graph."""
        ends: list[tuple[str, dict[str, Any]]] = []
        number = self._named[name]
        while number in self._place and len(ends) < 2:
            operator = self._operators[self._place[number]]
            if operator.name not in _VIEWS and operator.key.operator != NOISE:
                ends.append(self._end(operator))
            if not operator.reads:
                break
            number = operator.reads[1 if operator.name == "addmm" else 0]
        tensor = gs.Variable("start")
        for op, attributes in reversed(ends):
            out = gs.Variable(name)
            gs.Node(op, attrs=attributes, inputs=[tensor], outputs=[out])
            tensor = out
        tensor.name = name
        return tensor

    @staticmethod
    def _end(operator: Operator) -> tuple[str, dict[str, Any]]:
        """The name and the attributes of one of them."""
        if operator.key.operator == UNIT:
            is_map = operator.func in UNIT_FUNCTIONS - _BATCH_NORMS
            return ("Gemm" if operator.func is nn.functional.linear else "Conv") if is_map else "BatchNormalization", {}
        attributes = {"axis": operator.args[1]} if operator.name in ("_softmax", "_log_softmax") else {}
        return _NAMES.get(operator.name, operator.name), attributes


def weight_owners(module: nn.Module) -> dict[int, str]:
    """The part that a weight or a running mean belongs to, by the identity of the tensor."""
    owners: dict[int, str] = {}
    for name, part in module.named_modules():
        mean = getattr(part, "running_mean", None)
        for tensor in (part._parameters.get("weight"), mean):
            if isinstance(tensor, torch.Tensor):
                owners[id(tensor)] = name
    return owners


def owner_of(
    owners: Mapping[int, str], func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], scope: str
) -> str | None:
    """The part whose BatchNorm or linear map is called; None where its weight is computed.

    Raises:
        InputError: a BatchNorm without running statistics.
    """
    if func in _BATCH_NORMS:
        place = _STATISTICS[func]
        mean = args[place] if len(args) > place else kwargs.get("running_mean")
        if mean is None:
            raise InputError(
                f"the BatchNorm '{scope}' keeps no running statistics: what it computes depends on the batch, and "
                "nothing stored can be repaired"
            )
        return owners.get(id(mean))
    return owners.get(id(args[1] if len(args) > 1 else kwargs["weight"]))
