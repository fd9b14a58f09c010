"""Looks at the numbers that a graph multiplies by, in their own type: what is not finite, overflows, or loses digits.

Runtimes compute g = gamma / sqrt(var + epsilon) of a BatchNorm in the type that its parameters are stored in, without
a word where that is infinite. A BatchNorm is therefore scanned as what it becomes, g and s = beta - g mean, besides
its four parameters. Constants that nothing is multiplied by (masks, bounds, paddings) may be infinite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from .batch_norm import stored_values
from .constant_rounding import MULTIPLY_WEIGHTS
from .errors import CheckFailedError
from .fold_candidates import find_fold_candidates
from .graph_tree import GraphTree
from .inference import Array, Float64Array
from .nodes import label_of
from .tensors import constant_behind

Defect = Literal["NaN", "infinite", "negative", "overflow", "underflow", "subnormal"]
SCANNED_AT_ONCE = 1 << 20  # values, in float64 beside several masks
HARMFUL = frozenset({"NaN", "infinite", "negative", "overflow"})
_FLOAT_TYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
_SMALLEST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
_BY_RANGE = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class ValueFinding:
    """What is wrong with the values of one channel of one tensor.

    Attributes:
        tensor: the name of the tensor, or of the BatchNorm whose scale or shift it is.
        channel: along the output channels of a weight, else along the first axis.
        defect: NaN or infinite as stored; negative of a variance; overflow and underflow (to 0) of what a BatchNorm
            becomes; subnormal.
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
    """Every finding in the weights and BatchNorms of a graph and of the bodies in it; the graph is not changed."""
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
        What is only a loss of digits: underflow and subnormals.

    Raises:
        CheckFailedError: a NaN, an infinite value or an overflow; the message names the first tensor and channel.
    """
    findings = scan_values(graph)
    harm = describe_harm(findings)
    if harm is not None:
        raise CheckFailedError(f"the weights can't be deployed: {harm}")
    return findings


def describe_harm(findings: Sequence[ValueFinding]) -> str | None:
    """The first finding that forbids to deploy the graph, how many more there are, and what helps; None without one."""
    harmful = [finding for finding in findings if finding.defect in HARMFUL]
    if not harmful:
        return None
    first, others = harmful[0], len(harmful) - 1
    more = f" ({others} more like it)" if others else ""
    advice = (
        "cast the float32 file anew, with this layer in a wider type"
        if first.defect == "overflow"
        else "the file itself holds it: train again, or take an earlier checkpoint"
    )
    return f"{first}{more}; {advice}"


def doubtful_constants(graph: gs.Graph) -> tuple[str, ...]:
    """What stands in constants that nothing is multiplied by and is no mask: NaN, or infinity beside other numbers.

    Returns:
        One line for each tensor, of the graph and of the bodies in it; vsfix passes them on as they are.
    """
    tree = GraphTree(graph)
    weights = {id(constant) for constant, _ in _weights(tree)}
    lines: dict[int, str] = {}
    for node in tree.nodes():
        for tensor in node.inputs:
            constant = constant_behind(tensor)
            if constant is None or id(constant) in weights or id(constant) in lines:
                continue
            values = stored_values(constant)
            if values.dtype in _FLOAT_TYPES.values() and (strange := _strange(values)):
                lines[id(constant)] = f"'{constant.name}', read by {label_of(node)}" + (
                    f": {strange} values are not finite; they stay as they are"
                )
    return tuple(lines.values())


def _strange(values: Array) -> int:
    """How many values are NaN, or infinite beside several finite numbers, as no mask, bound or padding has them."""
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
                extreme = magnitudes.max() if defect in HARMFUL else magnitudes.min()
                count = int(magnitudes.size)
                found.append(ValueFinding(name, first + int(channel), defect, dtype.name, count, float(extreme)))
    yield from sorted(found, key=lambda finding: get_args(Defect).index(finding.defect))


def _is_normal(values: Float64Array, dtype: np.dtype[Any]) -> bool:
    """Whether each value is 0 or a normal number in a type."""
    sizes = np.abs(values)
    largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    return bool((((sizes >= _SMALLEST_NORMAL[dtype.name]) & (sizes <= largest)) | (sizes == 0)).all())


def _defects(values: Float64Array, dtype: np.dtype[Any]) -> Iterator[tuple[Defect, npt.NDArray[np.bool_]]]:
    """Where the values have which defect in a type."""
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
            constant = constant_behind(tensor)
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
