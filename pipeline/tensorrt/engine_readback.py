"""Reads back what TensorRT's parser made of the weights, and holds it against float64.

    SCALE of a BatchNorm         scale = gamma / sqrt(var + epsilon),  shift = beta - scale mean
    CONVOLUTION, DECONVOLUTION   kernel and bias as the file has them, BatchNorms folded into them included
    CONSTANT                     a weight of the file, by its name: those of Gemm and MatMul

The parser folds a BatchNorm in the type in which its parameters are stored, and says nothing where that overflows.
No GPU is needed: the values are those of the parsed network, before the builder.

An error is |found - wanted| over the magnitude that the value is made of: |wanted|, and for a shift the larger of
|beta| and |scale mean|, since the difference of the two may cancel. The largest over a layer is its error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm, find_batch_norms
from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.ir.graph import name_of, upstream_constant
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.ir.stored_values import stored_values

from .engine_layers import ParsedLayer, UnreadableValues

# About eight roundings of float32, and two of a narrow type, whose BatchNorms are folded in their own arithmetic.
TOLERANCES = {"float64": 1e-6, "float32": 1e-6, "float16": 2.0**-9, "bfloat16": 2.0**-6}
Status = Literal["PASS", "FAIL", "SKIP"]
_KERNELS = {"Conv": "CONVOLUTION", "ConvTranspose": "DECONVOLUTION"}
_FLOATS = tuple(TOLERANCES)


@dataclass(frozen=True)
class ReadBackRow:
    """One value of one layer.

    Attributes:
        node: the BatchNorm, the node or the weight of the file.
        kind: TensorRT's kind of layer.
        value: what was compared: scale, shift, kernel, bias or weights.
        count: how many numbers.
        error: the largest relative error; None where nothing could be compared.
        tolerance: what it may be.
        channel: of the largest error, along the first axis of the value.
        reason: why nothing could be compared; empty where it was.
    """

    node: str
    kind: str
    value: str
    count: int
    error: float | None
    tolerance: float
    channel: int = 0
    reason: str = ""

    @property
    def status(self) -> Status:
        """PASS, FAIL, or SKIP where nothing could be compared."""
        if self.error is None:
            return "SKIP"
        return "PASS" if self.error <= self.tolerance else "FAIL"


@dataclass(frozen=True)
class ReadBack:
    """The result of reading the weights back.

    Attributes:
        rows: one for each value.
    """

    rows: tuple[ReadBackRow, ...]

    def count(self, status: Status, kind: str | None = None) -> int:
        """How many rows have a status, of one kind of layer or of all."""
        return sum(row.status == status and kind in (None, row.kind) for row in self.rows)

    @property
    def largest_error(self) -> float:
        """The largest relative error; 0 where nothing was compared."""
        return max((row.error for row in self.rows if row.error is not None), default=0.0)

    @property
    def status(self) -> Status:
        """FAIL where a value is off, SKIP where nothing could be compared at all."""
        if self.count("FAIL"):
            return "FAIL"
        return "PASS" if self.count("PASS") else "SKIP"


@dataclass(frozen=True, eq=False)
class _Wanted:
    """The expected values of a layer: each in float64, with the magnitudes and the type that errors are relative to."""

    node: str
    kind: str
    values: dict[str, tuple[Float64Array, Float64Array]]
    dtype: str


def read_back(graph: gs.Graph, layers: Iterable[ParsedLayer]) -> ReadBack:
    """Compares the layers that TensorRT parsed with the graph that it parsed.

    Args:
        graph: the graph of the file; subgraphs of If and Loop are skipped.
        layers: what the parser made of it.
    """
    by_node: dict[tuple[str, str], list[ParsedLayer]] = defaultdict(list)
    constants: dict[str, ParsedLayer] = {}
    for layer in layers:
        by_node[layer.node or layer.name, layer.kind].append(layer)
        if layer.kind == "CONSTANT":
            constants[layer.name] = layer
    rows: list[ReadBackRow] = []
    for label, wanted in _wanted_by_node(graph):
        found = by_node[label, wanted.kind]  # nodes of one name stand here in the order of the file
        rows += _compare(wanted, found.pop(0) if found else None)
    for wanted in _wanted_constants(graph):
        if wanted.node in constants:
            rows += _compare(wanted, constants[wanted.node])
    return ReadBack(tuple(rows))


def require_read_back(result: ReadBack) -> None:
    """Refuses weights that TensorRT has made something else of.

    Raises:
        CheckFailedError: names the first, its channel and its error.
    """
    failed = [row for row in result.rows if row.status == "FAIL"]
    if failed:
        first, more = failed[0], f" ({len(failed) - 1} more values are off)" if len(failed) > 1 else ""
        raise CheckFailedError(
            f"TensorRT does not hold what the file says: {first.value} of '{first.node}', channel {first.channel}, is "
            f"off by {first.error:.2g} where {first.tolerance:.2g} is allowed{more}; no engine is built"
        )


def _wanted_by_node(graph: gs.Graph) -> Iterator[tuple[str, _Wanted]]:
    """The layers that the nodes with weights should become, with the label that TensorRT gives each node."""
    batch_norms = {id(batch_norm.node): batch_norm for batch_norm in find_batch_norms(graph)}
    for node in graph.nodes:
        label = str(node.name or f"node_of_{node.outputs[0].name}")
        if id(node) in batch_norms:
            yield label, _wanted_scale(batch_norms[id(node)])
        elif node.op in _KERNELS:
            stored = {
                name: upstream_constant(tensor)
                for name, tensor in zip(("kernel", "bias"), node.inputs[1:], strict=False)
            }
            # A quantised kernel is computed, from a CONSTANT that is compared as such; its bias is the layer's own. One
            # that comes through Identity is a tensor to the parser, which adds it after the layer.
            floats = {
                name: constant for name, constant in stored.items() if constant is not None and _float_type(constant)
            }
            if len(node.inputs) > 2 and any(producer.op == "Identity" for producer in node.inputs[2].inputs):
                floats.pop("bias", None)
            if floats:
                yield label, _wanted_kernel(name_of(node), node.op, floats)


def _wanted_scale(batch_norm: BatchNorm) -> _Wanted:
    """g and s of a BatchNorm, shape (C,)."""
    g, s = batch_norm.scale, batch_norm.shift
    with np.errstate(all="ignore"):
        magnitude = np.maximum(np.abs(batch_norm.beta), np.abs(g * batch_norm.mean))
    names = [stored_values(constant).dtype.name for constant in batch_norm.parameters]
    coarsest = max(names, key=lambda name: TOLERANCES.get(name, 0.0))
    return _Wanted(batch_norm.name, "SCALE", {"scale": (g, np.abs(g)), "shift": (s, magnitude)}, coarsest)


def _wanted_kernel(name: str, op: str, floats: Mapping[str, gs.Constant]) -> _Wanted:
    """A kernel and its bias, or one of them, as they are stored; TensorRT keeps the order of their numbers."""
    values = {value: _stored(constant) for value, constant in floats.items()}
    return _Wanted(name, _KERNELS[op], values, _float_type(next(iter(floats.values()))))


def _wanted_constants(graph: gs.Graph) -> Iterator[_Wanted]:
    """The float weights of the graph, each once."""
    seen: set[int] = set()
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen and _float_type(tensor):
                seen.add(id(tensor))
                yield _Wanted(str(tensor.name), "CONSTANT", {"weights": _stored(tensor)}, _float_type(tensor))


def _compare(wanted: _Wanted, layer: ParsedLayer | None) -> list[ReadBackRow]:
    """The rows of one layer."""
    tolerance = TOLERANCES.get(wanted.dtype, TOLERANCES["float32"])
    reason = f"TensorRT made no {wanted.kind} layer of it"
    try:
        found = layer.read() if layer is not None else None
    except UnreadableValues as error:
        found, reason = None, str(error)
    rows = []
    for name, (values, magnitude) in wanted.values.items():
        head = (wanted.node, wanted.kind, name, values.size)
        if found is None or (found[name].size == 0 and values.size and name == "kernel"):
            empty = "the graph computes its weights" if found is not None else reason
            rows.append(ReadBackRow(*head, None, tolerance, reason=empty))
        else:
            worst, channel = _error(found[name], values, magnitude)
            if wanted.kind == "SCALE" and not np.isfinite(found[name]).all():  # infinite there and here is no success
                worst, channel = float("inf"), int(np.flatnonzero(~np.isfinite(found[name]))[0])
            rows.append(ReadBackRow(*head, worst, tolerance, channel))
    if found is not None and not _is_one(found.get("power")):
        rows.append(ReadBackRow(wanted.node, wanted.kind, "power", found["power"].size, float("inf"), 0.0))
    return rows


def _error(found: Array, wanted: Float64Array, magnitude: Float64Array) -> tuple[float, int]:
    """The largest relative error and its channel; infinite where a number is missing or not finite."""
    flat, scale = wanted.reshape(-1), magnitude.reshape(-1)
    if found.size != flat.size:
        return float("inf"), 0
    with np.errstate(all="ignore"):
        difference = np.abs(found.astype(np.float64) - flat)
        relative = difference / np.maximum(scale, np.finfo(np.float64).tiny)
    relative = np.where(found == flat, 0.0, np.where(np.isnan(relative), np.inf, relative))
    worst = int(relative.argmax()) if relative.size else 0
    per_channel = max(1, flat.size // (wanted.shape[0] if wanted.ndim else 1))
    return (float(relative[worst]) if relative.size else 0.0), worst // per_channel


def _stored(constant: gs.Constant) -> tuple[Float64Array, Float64Array]:
    """The stored numbers in float64, and their magnitudes."""
    values = np.asarray(stored_values(constant)).astype(np.float64)
    return values, np.abs(values)


def _float_type(constant: gs.Constant) -> str:
    """The type of a constant of floating point; empty for another one."""
    name = str(stored_values(constant).dtype.name)
    return name if name in _FLOATS else ""


def _is_one(power: Array | None) -> bool:
    """Whether the exponent of a SCALE does nothing."""
    return power is None or power.size == 0 or bool(np.all(power.astype(np.float64) == 1))


def summarize(result: ReadBack) -> str:
    """The outcome in one line."""
    scales = result.count("PASS", "SCALE") + result.count("FAIL", "SCALE")
    compared = result.count("PASS") + result.count("FAIL")
    if not compared:
        return f"{result.status} read back: no weight could be compared"
    skipped = f", {result.count('SKIP')} could not be compared" if result.count("SKIP") else ""
    return (
        f"{result.status} read back: {scales} scales and shifts of BatchNorms and {compared - scales} kernels, biases "
        f"and weights agree with float64 to {result.largest_error:.2g}{skipped}"
    )


def skipped_reasons(result: ReadBack) -> Sequence[str]:
    """Why values could not be compared, each reason once with its first value."""
    found: dict[str, str] = {}
    for row in result.rows:
        if row.status == "SKIP":
            found.setdefault(row.reason, f"{row.value} of '{row.node}'")
    return [f"{value}: {reason}" for reason, value in found.items()]
