"""Puts noise markers into a graph that has lost them, where a person or an inference says that noise was.

An insertion point is given by a name, and the first of these readings that fits decides:

    the name of a BatchNorm   as `vsfix inspect` prints it: directly upstream of it, for it alone
    the name of a node        downstream of it, on its first output, for all consumers
    the name of a tensor      on it, for all consumers
    TENSOR->NODE              on the one edge from that tensor into that node
    a glob                    over the BatchNorms; where it matches none, over the nodes; then over the tensors
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import find_modules
from vsfix.graph_passes.errors import InputError, few_of
from vsfix.graph_passes.ir.graph import Tensor, captured_tensors, redirect_readers, upstream_constant
from vsfix.graph_passes.ir.graph_pass import Change, PassResult, Skipped

from .marker import is_dropout, marker_node_name, marker_ratio, read_marker, write_marker
from .noise import Noise

# The first opset in which Dropout can't drop unless it is told to, and the first in which the ratio is an input.
_FIRST_OPSET, _RATIO_INPUT_OPSET = 7, 12
_WHOLE_NUMBERS = frozenset("Shape Size ArgMax ArgMin NonZero QuantizeLinear Equal Less Greater And Or Not".split())
_FLOATS = frozenset("Conv ConvTranspose BatchNormalization Sigmoid Tanh Softmax AveragePool GlobalAveragePool".split())
_NAMED = 12  # nodes


@dataclass(frozen=True, eq=False)
class _InsertionPoint:
    """A tensor and the consumers that shall read it with noise."""

    label: str
    tensor: Tensor
    readers: tuple[gs.Node, ...]


class InsertNoise:
    """Puts one marker at each insertion point.

    Args:
        points: the noise by the name of its insertion point, as the module's docstring says.
        tensors_only: every name is that of a tensor and nothing else, whatever else has the same name.
    """

    name = "insert noise"

    def __init__(self, points: Mapping[str, Noise], *, tensors_only: bool = False) -> None:
        self.points = dict(points)
        self.tensors_only = tensors_only

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place. A point that has the same noise already is skipped.

        Raises:
            InputError: a name that matches nothing, a point that has another noise already, one that is no tensor of
                floating-point numbers or that nothing reads, or an opset below 7. The graph is as it was then.
        """
        if graph.opset < _FIRST_OPSET:
            raise InputError(
                f"the model has opset {graph.opset}, in which noise can't be marked; convert it to "
                f"{_FIRST_OPSET} or newer with onnx.version_converter"
            )
        found = [
            (name, point, noise)
            for name, noise in self.points.items()
            for point in _find_points(graph, name, self.tensors_only)
        ]
        taken: dict[tuple[int, int], str] = {}
        inserting: list[tuple[_InsertionPoint, Noise]] = []
        skipped: list[Skipped] = []
        for name, point, noise in found:
            _require_data(graph, name, point)
            for reader in point.readers:
                other = taken.setdefault((id(point.tensor), id(reader)), name)
                if other is not name:
                    raise InputError(f"--noise: '{name}' and '{other}' both mean the tensor '{point.tensor.name}'")
            present = _noise_at(point)
            if present is None:
                inserting.append((point, noise))
            elif present == noise:
                skipped.append(Skipped(point.label, f"{noise} is there already"))
            else:
                raise InputError(f"--noise '{name}': {present} is there already, at the tensor '{point.tensor.name}'")
        changed = [
            Change(point.label, f"{noise} inserted as '{_insert(graph, point, noise)}'") for point, noise in inserting
        ]
        return PassResult(self.name, tuple(changed), tuple(skipped))


def parse_noise_option(text: str) -> tuple[str, Noise]:
    """Reads `NODE=KIND:VALUE`; the last equals sign divides, for names may hold others.

    Returns:
        The name of the insertion point, or a glob, and the noise.

    Raises:
        InputError: another format, or noise outside its range.
    """
    name, _, noise = text.rpartition("=")
    if not name:
        raise InputError(f"--noise '{text}': write NODE=KIND:VALUE, as in stage1.0.bn2=dropout:0.5")
    found = Noise.parse(noise)
    if found.value == 0:
        raise InputError(f"--noise '{text}': a ratio of 0 is no noise; leave it out")
    return name, found


def _find_points(graph: gs.Graph, name: str, tensors_only: bool) -> list[_InsertionPoint]:
    """The insertion points that a name means."""
    tensors = {str(tensor.name): _point_of(tensor) for tensor in _tensors(graph)}
    tables = [tensors]
    if not tensors_only:
        uses = {module.name: module.uses for module in find_modules(graph)}
        if name in uses:
            return [_InsertionPoint(name, use.input, (use.node,)) for use in uses[name]]
        batch_norms = {
            use.name: _InsertionPoint(use.name, use.input, (use.node,)) for of in uses.values() for use in of
        }
        nodes = {node.name: _point_of(node.outputs[0]) for node in graph.nodes if node.name and node.outputs}
        tables = [batch_norms, nodes, tensors]
    for table in tables:
        if name in table:
            return [table[name]]
    if found := _edge(tensors, name) or _matching(tables, name):
        return found
    known = "`vsfix inspect` lists them"
    if not find_modules(graph):
        named = [str(node.name) for node in graph.nodes if node.name]
        known = f"no BatchNorm is left; there are the nodes {few_of(named, _NAMED)}"
    raise InputError(f"--noise '{name}': no BatchNorm, node or tensor has this name; {known}")


def _edge(tensors: Mapping[str, _InsertionPoint], name: str) -> list[_InsertionPoint]:
    """The insertion point that `TENSOR->NODE` means, or none."""
    source, _, target = name.partition("->")
    if source not in tensors:
        return []
    readers = tuple(reader for reader in tensors[source].readers if reader.name == target)
    return [_InsertionPoint(name, tensors[source].tensor, readers)] if readers else []


def _matching(tables: Iterable[Mapping[str, _InsertionPoint]], pattern: str) -> list[_InsertionPoint]:
    """The points whose names match a glob, from the first table in which any does; none where none does."""
    for table in tables:
        matching = {
            (id(point.tensor), *map(id, point.readers)): point
            for name, point in table.items()
            if fnmatchcase(name, pattern)
        }
        if matching:
            return list(matching.values())
    return []


def _tensors(graph: gs.Graph) -> Iterable[gs.Variable]:
    """The inputs of the graph and what its nodes write."""
    yield from graph.inputs
    for node in graph.nodes:
        yield from (tensor for tensor in node.outputs if not tensor.is_empty())


def _point_of(tensor: Tensor) -> _InsertionPoint:
    """The insertion point of a tensor for all its readers."""
    return _InsertionPoint(str(tensor.name), tensor, tuple(_readers(tensor)))


def _readers(tensor: Tensor) -> list[gs.Node]:
    """The nodes that read a tensor, each once."""
    return list({id(node): node for node in tensor.outputs}.values())


def _require_data(graph: gs.Graph, name: str, point: _InsertionPoint) -> None:
    """Refuses a point at which noise can't stand."""
    tensor = point.tensor
    if upstream_constant(tensor) is not None:
        raise InputError(f"--noise '{name}': '{tensor.name}' is a constant; noise on a weight can't be repeated")
    if holds_whole_numbers(tensor):
        raise InputError(f"--noise '{name}': '{tensor.name}' holds whole numbers; noise needs floating-point numbers")
    if not point.readers:
        raise InputError(f"--noise '{name}': no node reads '{tensor.name}', so noise there would change nothing")
    if any(tensor is read for node in graph.nodes for read in captured_tensors(node)):
        raise InputError(f"--noise '{name}': a control-flow subgraph reads '{tensor.name}'; name another tensor")


def holds_whole_numbers(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers or truth values; its type follows the data that it is computed from."""
    while tensor.dtype is None:
        if not tensor.inputs:
            return False
        producer = tensor.inputs[0]
        if producer.op in _WHOLE_NUMBERS:
            return True
        if producer.op in _FLOATS:
            return False
        if producer.op == "Cast":
            return bool(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(producer.attrs["to"])).kind in "iub")
        data = producer.inputs[1:] if producer.op == "Where" else producer.inputs
        if not data or producer.op == "DequantizeLinear":
            return False
        tensor = data[0]
    return np.dtype(tensor.dtype).kind in "iub"


def _noise_at(point: _InsertionPoint) -> Noise | None:
    """The noise that a marker puts there already."""
    neighbours = [*point.tensor.inputs, *point.readers]
    found = (read_marker(node) for node in neighbours if is_dropout(node))
    return next((noise for noise in found if noise is not None), None)


def _insert(graph: gs.Graph, point: _InsertionPoint, noise: Noise) -> str:
    """Puts a marker between a tensor and its readers; returns the name of the marker."""
    name = _free_name(f"{point.label}.noise", {node.name for node in graph.nodes} | set(graph.tensors()))
    output = gs.Variable(f"{name}.output", dtype=point.tensor.dtype, shape=point.tensor.shape)
    redirect_readers(point.tensor, output, point.readers)
    graph.nodes.insert(_position_after(graph, point.tensor), _marker(graph.opset, name, noise, point.tensor, output))
    return name


def _marker(opset: int, name: str, noise: Noise, data: Tensor, output: gs.Variable) -> gs.Node:
    """The marker as the opset has it: before 12 the ratio is an attribute, and Dropout can't drop at inference."""
    if opset >= _RATIO_INPUT_OPSET:
        return write_marker(name, noise, data, output)
    attributes: dict[str, object] = {"ratio": marker_ratio(noise)}
    return gs.Node("Dropout", marker_node_name(name, noise), attributes, inputs=[data], outputs=[output])


def _free_name(name: str, taken: Collection[str]) -> str:
    """A name from which no name in `taken` is derived."""
    number = 1
    candidate = name
    while any(other == candidate or str(other).startswith((f"{candidate}.", f"{candidate}#")) for other in taken):
        number += 1
        candidate = f"{name}{number}"
    return candidate


def _position_after(graph: gs.Graph, tensor: Tensor) -> int:
    """The index after the producer of a tensor; 0 for an input of the graph."""
    producers = {id(node) for node in tensor.inputs}
    return next((index + 1 for index, node in enumerate(graph.nodes) if id(node) in producers), 0)
