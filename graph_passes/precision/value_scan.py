"""Scans the numbers that a graph multiplies by, in their own type: not finite, overflows, loss of digits.

Runtimes compute g = gamma / sqrt(var + epsilon) of a BatchNorm in the type that its parameters are stored in, without
a word where that is infinite. A BatchNorm is therefore scanned as g and s = beta - g mean, besides its four parameters.
Constants that nothing is multiplied by (masks, bounds, paddings) may be infinite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.folding.candidates import find_fold_candidates
from vsfix.graph_passes.ir.graph import label_of, upstream_constant
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.ir.stored_values import stored_values
from vsfix.graph_passes.ir.subgraphs import GraphTree

from .constant_rounding import MULTIPLY_WEIGHTS

Defect = Literal["NaN", "infinite", "negative", "overflow", "underflow", "subnormal"]
SCANNED_AT_ONCE = 1 << 20  # values, in float64 beside several masks
ERRORS = frozenset({"NaN", "infinite", "negative", "overflow"})
_FLOAT_TYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
_SMALLEST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
_LARGEST = {
    "float16": 65504.0,
    "bfloat16": 255 * 2.0**120,
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}
_BY_RANGE = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class ValueFinding:
    """A defect of the values of one channel of one tensor.

    Attributes:
        tensor: the name of the tensor, or of the BatchNorm whose scale or shift it is.
        channel: along the output channels of a weight, else along the first axis.
        defect: NaN or infinite as stored; negative of a variance; overflow and underflow (to 0) of the scale or
            shift of a BatchNorm; subnormal.
        dtype: the type that the values are stored in.
        count: how many values of the channel.
        largest: the largest magnitude among them as stored; the smallest for underflow and subnormal.
    """

    tensor: str
    channel: int
    defect: Defect
    dtype: str
    count: int
    largest: float

    def __str__(self) -> str:
        """One line for a message."""
        where = f"'{self.tensor}', channel {self.channel}"
        if self.defect in ("NaN", "infinite", "negative"):
            return f"{where}: {self.count} {'value is' if self.count == 1 else 'values are'} {self.defect}"
        becomes = {"overflow": "infinite", "underflow": "0", "subnormal": "subnormal"}[self.defect]
        values = "value becomes" if self.count == 1 else "values become"
        return f"{where}: {self.count} {values} {becomes} in {self.dtype} ({self.largest:.4g})"


def scan_values(graph: gs.Graph) -> tuple[ValueFinding, ...]:
    """Every finding in the weights and BatchNorms of a graph and of the subgraphs in it; the graph is not changed."""
    tree = GraphTree(graph)
    found: list[ValueFinding] = []
    for constant, axis in _weights(tree):
        values = stored_values(constant)
        if values.dtype in _FLOAT_TYPES.values():
            found += _scan(str(constant.name), values, values.dtype, axis)
    for candidate in find_fold_candidates(tree)[0]:
        batch_norm = candidate.batch_norm
        stored = _narrowest([stored_values(constant).dtype for constant in batch_norm.parameters])
        for kind, row in (("gamma / sqrt(var + epsilon)", batch_norm.scale), ("shift", batch_norm.shift)):
            found += _scan(f"{batch_norm.name}: {kind}", row, stored, 0)
        for channel in np.flatnonzero(batch_norm.variance < 0):
            size = float(-batch_norm.variance[channel])
            found.append(ValueFinding(f"{batch_norm.name}: var", int(channel), "negative", stored.name, 1, size))
    return tuple(found)


def require_finite_values(graph: gs.Graph) -> tuple[ValueFinding, ...]:
    """Refuses a graph with weights that are not finite, or become so in the type that they are stored in.

    Returns:
        The findings that are only a loss of digits: underflow and subnormals.

    Raises:
        CheckFailedError: a NaN, an infinite value or an overflow; the message names the first tensor and channel.
    """
    findings = scan_values(graph)
    error = describe_error(findings)
    if error is not None:
        raise CheckFailedError(f"the weights can't be deployed: {error}")
    return findings


def describe_error(findings: Sequence[ValueFinding]) -> str | None:
    """The first finding that forbids to deploy the graph, how many more there are, and a remedy; None without one."""
    errors = [finding for finding in findings if finding.defect in ERRORS]
    if not errors:
        return None
    first, others = errors[0], len(errors) - 1
    more = f" ({others} more like it)" if others else ""
    advice = (
        "cast the float32 file anew, with this layer in a wider type"
        if first.defect == "overflow"
        else "the file itself holds it: train again, or take an earlier checkpoint"
    )
    return f"{first}{more}; {advice}"


def doubtful_constants(graph: gs.Graph) -> tuple[str, ...]:
    """Doubtful values of constants that nothing is multiplied by and that are no mask: NaN, infinity beside numbers.

    Returns:
        One line for each tensor, of the graph and of the subgraphs in it; vsfix does not change them.
    """
    tree = GraphTree(graph)
    weights = {id(constant) for constant, _ in _weights(tree)}
    lines: dict[int, str] = {}
    for node in tree.nodes():
        for tensor in node.inputs:
            constant = upstream_constant(tensor)
            if constant is None or id(constant) in weights or id(constant) in lines:
                continue
            values = stored_values(constant)
            if values.dtype in _FLOAT_TYPES.values() and (strange := _strange(values)):
                lines[id(constant)] = f"'{constant.name}', read by {label_of(node)}" + (
                    f": {strange} values are not finite; they are unchanged"
                )
    return tuple(lines.values())


def _strange(values: Array) -> int:
    """The number of values that are NaN, or infinite beside several numbers, as in no mask, bound or padding."""
    bad = ~np.isfinite(values)
    if not bad.any():
        return 0
    is_mask = not np.isnan(values).any() and len(set(values[~bad].tolist())) <= 1
    return 0 if is_mask else int(bad.sum())


def _scan(name: str, values: Array, stored: npt.DTypeLike, axis: int) -> Iterator[ValueFinding]:
    """The findings of one tensor."""
    dtype = np.dtype(stored)
    rows = np.atleast_1d(values)
    rows = np.moveaxis(rows, axis if axis < rows.ndim else 0, 0)  # (channels, everything else)
    found = []
    step = max(1, SCANNED_AT_ONCE * len(rows) // max(1, rows.size))
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        part = part.astype(np.float64).reshape(len(part), -1)
        if _is_normal(part, dtype):
            continue
        for defect, mask in _defects(part, dtype):
            for channel in np.flatnonzero(mask.any(axis=1)):
                magnitudes = np.abs(part[channel][mask[channel]])
                extreme = magnitudes.max() if defect in ERRORS else magnitudes.min()
                count = int(magnitudes.size)
                found.append(ValueFinding(name, first + int(channel), defect, dtype.name, count, float(extreme)))
    yield from sorted(found, key=lambda finding: get_args(Defect).index(finding.defect))


def _is_normal(values: Float64Array, dtype: np.dtype[Any]) -> bool:
    """Whether each value is 0 or a normal number in a type."""
    sizes = np.abs(values)
    normal = (sizes >= _SMALLEST_NORMAL[dtype.name]) & (sizes <= _LARGEST[dtype.name])
    return bool((normal | (sizes == 0)).all())


def _defects(values: Float64Array, dtype: np.dtype[Any]) -> Iterator[tuple[Defect, npt.NDArray[np.bool_]]]:
    """Each defect, with a mask of the values that have it in a type."""
    with np.errstate(all="ignore"):
        rounded = values.astype(dtype).astype(np.float64)
    finite = np.isfinite(values)
    tiny = _SMALLEST_NORMAL[dtype.name]
    yield "NaN", np.isnan(values)
    yield "infinite", np.isinf(values)
    yield "overflow", finite & ~np.isfinite(rounded)
    yield "underflow", (values != 0) & (rounded == 0)
    yield "subnormal", (rounded != 0) & (np.abs(rounded) < tiny)


def _weights(tree: GraphTree) -> Iterator[tuple[gs.Constant, int]]:
    """Each weight of a tree, and the axis that its channels lie along."""
    seen: set[int] = set()
    for node in tree.nodes():
        for index, tensor in enumerate(node.inputs if node.op in MULTIPLY_WEIGHTS else ()):
            constant = upstream_constant(tensor)
            if constant is not None and id(constant) not in seen:
                seen.add(id(constant))
                yield constant, _channel_axis(node, index)


def _channel_axis(node: gs.Node, index: int) -> int:
    """The axis of an operand that holds the output channels."""
    if index != 1:
        return 0
    return int(node.op in ("ConvTranspose", "MatMul") or (node.op == "Gemm" and not node.attrs.get("transB", 0)))


def _narrowest(dtypes: list[np.dtype[Any]]) -> np.dtype[Any]:
    """The type with the smallest range."""
    return min(dtypes, key=lambda dtype: _BY_RANGE.index(dtype.name))
