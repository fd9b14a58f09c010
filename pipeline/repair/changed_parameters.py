"""The parameters that a repair changed, by their names in a PyTorch module; and those that no such name can carry.

A parameter is carried where the file stores it under a name that a state_dict could have, one layer alone reads it,
and it stands there as the module stores it. Scale and shift of a BatchNorm that can't be carried are put into its
running statistics, which say the same of a module that keeps its own scale g0 and shift b0:

    s = sqrt(var + eps)    s' = s g0 / g    mean' = mean + (b0 - b) s / g    var' = s'^2 - eps, if that is not negative
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm, find_modules
from vsfix.graph_passes.errors import few_of
from vsfix.graph_passes.folding.linear_layer import LINEAR_OPERATORS
from vsfix.graph_passes.io.model_file import import_graph
from vsfix.graph_passes.ir.graph import is_batch_norm, name_of, upstream_constant
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.ir.stored_values import stored_values

_STATISTICS = ("running_mean", "running_var")
_SCALE_AND_SHIFT = ("weight", "bias")
_SHOWN = 3  # names in one sentence
_NEW = "for which the module has no parameter"
_SHARED = "which several layers share"
_UNNAMED = "which the file holds under no name of a module"
_NO_STATISTICS = "whose running statistics the file holds under no name that is theirs alone"
_NO_FORM = "whose module has no scale and shift for it, and no running statistics that stand for them"


@dataclass(frozen=True)
class ChangedParameters:
    """The changed parameters.

    Attributes:
        arrays: by state_dict name, of the shape that the file has: of a BatchNorm its running statistics, float32, and
            its scale and shift where they changed; of a linear layer its weight and bias.
        reasons: why a change is not among them, by what changed: `the bias of 'node_linear'`.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def not_carried(self) -> tuple[str, ...]:
        """One sentence for each of those reasons that occurs; empty where everything is carried."""
        by_reason: dict[str, list[str]] = {}
        for what, reason in self.reasons.items():
            by_reason.setdefault(reason, []).append(what)
        return tuple(
            f"the statistics file does not carry {few_of(what, _SHOWN)}, {reason}: PyTorch with it will not agree with "
            "the repaired file"
            for reason, what in by_reason.items()
        )


def changed_parameters(
    source: onnx.ModelProto, before: gs.Graph, after: gs.Graph, subjects: Collection[str]
) -> ChangedParameters:
    """Every parameter that a repair changed.

    Args:
        source: the model as it was read, which names the parameters.
        before: its prepared graph.
        after: the same graph, repaired.
        subjects: the names of the BatchNorms that a repair changed.
    """
    known = _KnownNames(import_graph(source))
    arrays: dict[str, Array] = {}
    reasons: dict[str, str] = {}
    earlier = {batch_norm.name: batch_norm for batch_norm in find_modules(before)}
    for batch_norm in find_modules(after):
        if batch_norm.name in subjects:
            found = _of_batch_norm(batch_norm, earlier[batch_norm.name], known)
            if isinstance(found, str):
                reasons[f"BatchNorm '{batch_norm.name}'"] = found
            else:
                arrays |= found
    for change in _linear_changes(before, after):
        if (reason := known.obstacle(change)) is not None:
            reasons[f"the {change.kind} of '{change.owner}'"] = reason
        else:
            arrays[change.after.name] = stored_values(change.after)
    return ChangedParameters(arrays, reasons)


@dataclass(frozen=True, eq=False)
class _Change:
    """A constant of a layer that has other values than before.

    Attributes:
        owner: the layer.
        kind: `weight` or `bias`.
        before: what stood there; None where nothing did.
        after: what stands there.
        is_scaled: whether the layer multiplies it by another number than before.
    """

    owner: str
    kind: str
    before: gs.Constant | None
    after: gs.Constant
    is_scaled: bool


class _KnownNames:
    """The constants of a file as it was read.

    Args:
        graph: the file's.
    """

    def __init__(self, graph: gs.Graph) -> None:
        tensors = graph.tensors().items()
        self._constants = {name: tensor for name, tensor in tensors if isinstance(tensor, gs.Constant)}

    def holds(self, name: str, module: BatchNorm) -> bool:
        """Whether the file has it, under a name that a module could have for it, for the uses of that module alone."""
        if name not in self._constants or not _is_module_name(name):
            return False
        readers = list(self._constants[name].outputs)
        return len(readers) == 1 or (len(readers) == len(module.uses) and all(map(is_batch_norm, readers)))

    def obstacle(self, change: _Change) -> str | None:
        """Why a module can't be told of a change by the name of the constant, or None."""
        if change.before is None:
            return _NEW
        name = change.before.name
        stored = self._constants.get(name)
        if stored is None or not _is_module_name(name) or change.is_scaled or not _equal(stored, change.before):
            return _UNNAMED
        if change.after.name != name or len(stored.outputs) != 1 or self._has_twin(name):
            return _SHARED
        return None

    def _has_twin(self, name: str) -> bool:
        """Whether the file holds the same matrix again, turned round or not: of a layer that shares it, most likely."""
        own = self._constants[name]
        if len(own.shape) < 2 or prod(own.shape) < 2:
            return False
        others = (tensor for other, tensor in self._constants.items() if other != name and prod(tensor.shape) > 1)
        alike = [tensor for tensor in others if sorted(tensor.shape) == sorted(own.shape)]
        values = stored_values(own)
        first = values.flat[0]  # the same one in both layouts; most matrices are told apart by it
        candidates = (other for other in map(stored_values, alike) if other.flat[0] == first)
        layouts = (values, values.swapaxes(0, 1))
        return any(np.array_equal(other, layout) for other in candidates for layout in layouts)


def _is_module_name(name: str) -> bool:
    """Whether a state_dict could have the name: that of an exporter's own constant has no dot, or is no Python path."""
    return not set(name) & set(":/") and ("." in name or name in _SCALE_AND_SHIFT)


def _equal(one: gs.Constant, other: gs.Constant) -> bool:
    """Whether two constants are the same to the bit; those whose values are one array are not even looked at."""
    if one._values is other._values:
        return True
    if tuple(one.shape) != tuple(other.shape) or one.dtype != other.dtype:
        return False
    return stored_values(one).tobytes() == stored_values(other).tobytes()


def _linear_changes(before: gs.Graph, after: gs.Graph) -> Iterator[_Change]:
    """The constants that nodes read now instead of others, those of BatchNorms left out."""
    for old, node in _paired_nodes(before, after):
        if is_batch_norm(node):
            continue
        earlier = [] if old is None else [upstream_constant(tensor) for tensor in old.inputs]
        for index, constant in enumerate(map(upstream_constant, node.inputs)):
            if constant is None:
                continue
            stored = earlier[index] if index < len(earlier) else None
            is_scaled = index == 2 and old is not None and old.attrs.get("beta", 1.0) != node.attrs.get("beta", 1.0)
            if stored is None and not np.any(stored_values(constant)):
                continue
            if stored is None or is_scaled or not _equal(stored, constant):
                kind = "weight" if index == 1 and node.op in LINEAR_OPERATORS else "bias"
                yield _Change(_owner(node), kind, stored, constant, is_scaled)


def _paired_nodes(before: gs.Graph, after: gs.Graph) -> Iterator[tuple[gs.Node | None, gs.Node]]:
    """Each node with what it was before; None for one that was put in, which the others stand around as they stood."""
    earlier = deque(before.nodes)
    for node in after.nodes:
        is_known = bool(earlier) and (earlier[0].op, earlier[0].name) == (node.op, node.name)
        yield (earlier.popleft() if is_known else None), node


def _owner(node: gs.Node) -> str:
    """The layer that a node belongs to: downstream of an operator, an Add holds the bias."""
    if node.op == "Add":
        for tensor in node.inputs:
            if tensor.inputs and tensor.inputs[0].op in LINEAR_OPERATORS:
                return name_of(tensor.inputs[0])
    return name_of(node)


def _of_batch_norm(batch_norm: BatchNorm, before: BatchNorm, known: _KnownNames) -> dict[str, Array] | str:
    """The entries of one in a state_dict, or why there are none; scale and shift only where they changed."""
    name = batch_norm.name
    if not all(known.holds(f"{name}.{kind}", batch_norm) for kind in _STATISTICS):
        return _NO_STATISTICS
    arrays: dict[str, Array] = {}
    mean, variance = batch_norm.mean, batch_norm.variance
    changed = [
        not np.array_equal(new.astype(stored_values(constant).dtype), old)
        for new, old, constant in (
            (batch_norm.gamma, before.gamma, before.parameters[0]),
            (batch_norm.beta, before.beta, before.parameters[1]),
        )
    ]
    carried = [
        constant.name == f"{name}.{kind}" and known.holds(constant.name, batch_norm)
        for kind, constant in zip(_SCALE_AND_SHIFT, batch_norm.parameters[:2], strict=True)
    ]
    if any(new and not named for new, named in zip(changed, carried, strict=True)):
        found = _as_statistics(batch_norm, before)
        if found is None:
            return _NO_FORM
        mean, variance = found
    else:
        values = (batch_norm.gamma, batch_norm.beta)
        arrays = {
            f"{name}.{kind}": value.astype(np.float32)
            for kind, value, new in zip(_SCALE_AND_SHIFT, values, changed, strict=True)
            if new
        }
    statistics = (mean.astype(np.float32), variance.astype(np.float32))
    return {**arrays, **{f"{name}.{kind}": value for kind, value in zip(_STATISTICS, statistics, strict=True)}}


def _as_statistics(batch_norm: BatchNorm, before: BatchNorm) -> tuple[Float64Array, Float64Array] | None:
    """Mean and variance with which the scale and shift of before give what is given now; None where none do."""
    deviation = np.sqrt(batch_norm.variance + batch_norm.epsilon)
    with np.errstate(all="ignore"):
        ratio = before.gamma / batch_norm.gamma
        mean = batch_norm.mean + (before.beta - batch_norm.beta) * deviation / batch_norm.gamma
        variance = np.square(deviation * ratio) - batch_norm.epsilon
    same = (before.gamma == batch_norm.gamma) & (before.beta == batch_norm.beta)
    mean, variance = np.where(same, batch_norm.mean, mean), np.where(same, batch_norm.variance, variance)
    possible = same | ((ratio > 0) & (variance >= 0) & np.isfinite(mean) & np.isfinite(variance))
    return (mean, variance) if possible.all() else None
