"""Puts noise markers into a graph that has lost them, where a person or an inference says that noise was.

A site is said by a name, and the first of these readings that fits decides:

    the name of a BatchNorm   as `vsfix inspect` prints it: directly in front of it, for it alone
    the name of a node        behind its first output, for all who read it
    the name of a tensor      on it, for all who read it
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
from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.ir.graph import Tensor, captured_tensors, redirect_readers, upstream_constant
from vsfix.graph_passes.ir.graph_pass import Change, PassResult, Skipped

from .marker import is_dropout, marker_node_name, marker_ratio, read_marker, write_marker
from .noise import Noise

# The first opset in which Dropout can't drop unless it is told to, and the first in which the ratio is an input.
_FIRST_OPSET, _RATIO_INPUT_OPSET = 7, 12
_WHOLE_NUMBERS = frozenset("Shape Size ArgMax ArgMin NonZero QuantizeLinear Equal Less Greater And Or Not".split())
_FLOATS = frozenset("Conv ConvTranspose BatchNormalization Sigmoid Tanh Softmax AveragePool GlobalAveragePool".split())


@dataclass(frozen=True, eq=False)
class _Site:
    """A tensor and the nodes that shall read it with noise."""

    label: str
    tensor: Tensor
    readers: tuple[gs.Node, ...]


class InsertNoise:
    """Puts one marker at each site.

    Args:
        sites: the noise by the name of its site, as the head of this module says.
        tensors_only: every name is that of a tensor and nothing else, whatever else has the same name.
    """

    name = "insert noise"

    def __init__(self, sites: Mapping[str, Noise], *, tensors_only: bool = False) -> None:
        self.sites = dict(sites)
        self.tensors_only = tensors_only

    def __call__(self, graph: gs.Graph) -> PassResult:
        """Edits `graph` in place. A site that has the same noise already is left as it is.

        Raises:
            InputError: a name that matches nothing, a site that has another noise already, one that is no tensor of
                floating-point numbers or that nothing reads, or an opset below 7. The graph is as it was then.
        """
        if graph.opset < _FIRST_OPSET:
            raise InputError(
                f"the model has opset {graph.opset}, in which no noise can be written down; convert it to "
                f"{_FIRST_OPSET} or newer with onnx.version_converter"
            )
        found = [
            (name, site, noise)
            for name, noise in self.sites.items()
            for site in _find_sites(graph, name, self.tensors_only)
        ]
        taken: dict[tuple[int, int], str] = {}
        inserting: list[tuple[_Site, Noise]] = []
        skipped: list[Skipped] = []
        for name, site, noise in found:
            _require_data(graph, name, site)
            for reader in site.readers:
                other = taken.setdefault((id(site.tensor), id(reader)), name)
                if other is not name:
                    raise InputError(f"--noise: '{name}' and '{other}' both mean the tensor '{site.tensor.name}'")
            present = _noise_at(site)
            if present is None:
                inserting.append((site, noise))
            elif present == noise:
                skipped.append(Skipped(site.label, f"{noise} is there already"))
            else:
                raise InputError(f"--noise '{name}': {present} is there already, at the tensor '{site.tensor.name}'")
        changed = [
            Change(site.label, f"{noise} inserted as '{_insert(graph, site, noise)}'") for site, noise in inserting
        ]
        return PassResult(self.name, tuple(changed), tuple(skipped))


def parse_noise_option(text: str) -> tuple[str, Noise]:
    """Reads `NODE=KIND:VALUE`; the last equals sign divides, for names may hold others.

    Returns:
        The name of the site, or a glob, and the noise.

    Raises:
        InputError: another form, or a noise that can't be.
    """
    name, _, noise = text.rpartition("=")
    if not name:
        raise InputError(f"--noise '{text}': write NODE=KIND:VALUE, as in stage1.0.bn2=dropout:0.5")
    found = Noise.parse(noise)
    if found.value == 0:
        raise InputError(f"--noise '{text}': a ratio of 0 is no noise; leave it out")
    return name, found


def _find_sites(graph: gs.Graph, name: str, tensors_only: bool) -> list[_Site]:
    """The sites that a name means."""
    tensors = {str(tensor.name): _behind(tensor) for tensor in _tensors(graph)}
    tables = [tensors]
    if not tensors_only:
        uses = {module.name: module.uses for module in find_modules(graph)}
        if name in uses:
            return [_Site(name, use.input, (use.node,)) for use in uses[name]]
        batch_norms = {use.name: _Site(use.name, use.input, (use.node,)) for of in uses.values() for use in of}
        nodes = {node.name: _behind(node.outputs[0]) for node in graph.nodes if node.name and node.outputs}
        tables = [batch_norms, nodes, tensors]
    for table in tables:
        if name in table:
            return [table[name]]
    return _edge(tensors, name) or _matching(tables, name)


def _edge(tensors: Mapping[str, _Site], name: str) -> list[_Site]:
    """The site that `TENSOR->NODE` means, or none."""
    source, _, target = name.partition("->")
    if source not in tensors:
        return []
    readers = tuple(reader for reader in tensors[source].readers if reader.name == target)
    return [_Site(name, tensors[source].tensor, readers)] if readers else []


def _matching(tables: Iterable[Mapping[str, _Site]], pattern: str) -> list[_Site]:
    """The sites whose names match a glob, from the first table in which any does."""
    for table in tables:
        matching = {
            (id(site.tensor), *map(id, site.readers)): site
            for name, site in table.items()
            if fnmatchcase(name, pattern)
        }
        if matching:
            return list(matching.values())
    raise InputError(f"--noise '{pattern}': no BatchNorm, node or tensor has this name; `vsfix inspect` lists them")


def _tensors(graph: gs.Graph) -> Iterable[gs.Variable]:
    """Everything that is computed or given."""
    yield from graph.inputs
    for node in graph.nodes:
        yield from (tensor for tensor in node.outputs if not tensor.is_empty())


def _behind(tensor: Tensor) -> _Site:
    """The site of a tensor for all its readers."""
    return _Site(str(tensor.name), tensor, tuple(_readers(tensor)))


def _readers(tensor: Tensor) -> list[gs.Node]:
    """The nodes that read a tensor, each once."""
    return list({id(node): node for node in tensor.outputs}.values())


def _require_data(graph: gs.Graph, name: str, site: _Site) -> None:
    """Refuses a site that noise can't stand at."""
    tensor = site.tensor
    if upstream_constant(tensor) is not None:
        raise InputError(f"--noise '{name}': '{tensor.name}' is a constant; noise on a weight can't be repeated")
    if holds_whole_numbers(tensor):
        raise InputError(f"--noise '{name}': '{tensor.name}' holds whole numbers; noise needs floating-point numbers")
    if not site.readers:
        raise InputError(f"--noise '{name}': no node reads '{tensor.name}', so noise there would change nothing")
    if any(tensor is read for node in graph.nodes for read in captured_tensors(node)):
        raise InputError(f"--noise '{name}': a control-flow body reads '{tensor.name}'; name another tensor")


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


def _noise_at(site: _Site) -> Noise | None:
    """The noise that a marker puts on the site already."""
    neighbours = [*site.tensor.inputs, *site.readers]
    found = (read_marker(node) for node in neighbours if is_dropout(node))
    return next((noise for noise in found if noise is not None), None)


def _insert(graph: gs.Graph, site: _Site, noise: Noise) -> str:
    """Puts a marker between a tensor and its readers; returns the name of the marker."""
    name = _free_name(f"{site.label}.noise", {node.name for node in graph.nodes} | set(graph.tensors()))
    noisy = gs.Variable(f"{name}.output", dtype=site.tensor.dtype, shape=site.tensor.shape)
    redirect_readers(site.tensor, noisy, site.readers)
    graph.nodes.insert(_position_behind(graph, site.tensor), _marker(graph.opset, name, noise, site.tensor, noisy))
    return name


def _marker(opset: int, name: str, noise: Noise, data: Tensor, output: gs.Variable) -> gs.Node:
    """The marker in the form of the opset: before 12 the ratio is an attribute, and Dropout can't drop at inference."""
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


def _position_behind(graph: gs.Graph, tensor: Tensor) -> int:
    """The position right behind the node that computes a tensor; the front for an input of the graph."""
    producers = {id(node) for node in tensor.inputs}
    return next((index + 1 for index, node in enumerate(graph.nodes) if id(node) in producers), 0)
