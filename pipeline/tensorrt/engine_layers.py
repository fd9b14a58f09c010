"""The layers of a network or an engine as plain data, free of TensorRT's own objects.

Types are named as TensorRT names them: FLOAT, HALF, BF16, FP8, INT8, INT32 and so on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from vsfix.graph_passes.ir.runtime import Array

FLOAT_TYPES = ("FLOAT", "HALF", "BF16", "FP8", "FP4")
NARROW_INTEGERS = ("INT8", "INT4")
COMPUTING = frozenset({"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "FULLY_CONNECTED", "EINSUM", "ATTENTION"})
Shares = Mapping[str, Mapping[str, int]]


class UnreadableValues(Exception):
    """The values of a layer can't be had; the message says why. Never reaches a user."""


@dataclass(frozen=True)
class ParsedLayer:
    """A layer that the parser made.

    Attributes:
        name: TensorRT's own.
        node: the name of the ONNX node that it belongs to; empty where TensorRT names none.
        kind: CONVOLUTION, SCALE, CONSTANT and so on.
        types: what its outputs hold.
        read: its weights by TensorRT's names for them (scale, shift, power; kernel, bias; weights), flat, copied;
            raises `UnreadableValues`.
    """

    name: str
    node: str
    kind: str
    types: tuple[str, ...]
    read: Callable[[], Mapping[str, Array]] = field(repr=False, compare=False)


@dataclass(frozen=True)
class EngineLayer:
    """A layer of a built engine, as its inspector tells of it.

    Attributes:
        name: TensorRT's own.
        kind: as the inspector names it.
        types: what its outputs hold; empty where the inspector does not say.
        tactic: the kernel that runs it; empty where the inspector does not say.
    """

    name: str
    kind: str
    types: tuple[str, ...]
    tactic: str = ""


def count_types(layers: Iterable[ParsedLayer] | Iterable[EngineLayer]) -> dict[str, dict[str, int]]:
    """How many layers of each kind have an output of each type."""
    counts = Counter((layer.kind, kind) for layer in layers for kind in set(layer.types) or {"unknown"})
    found: dict[str, dict[str, int]] = {}
    for (layer, kind), count in sorted(counts.items()):
        found.setdefault(layer, {})[kind] = count
    return found


def computing_types(layers: Iterable[ParsedLayer]) -> Counter[str]:
    """How many of the layers that do the work (convolutions, products) give each type of floating point.

    Where there is none of them, all the layers count.
    """
    layers = list(layers)
    chosen = [layer for layer in layers if layer.kind in COMPUTING] or layers
    return Counter(kind for layer in chosen for kind in set(layer.types) if kind in FLOAT_TYPES)


def quantized_types(layers: Iterable[ParsedLayer]) -> set[str]:
    """The types that the network quantises to, as INT8 or FP8; a weight that is stored quantised counts too."""
    layers = list(layers)
    if not is_quantized(layers):
        return set()
    kinds = {kind for layer in layers if layer.kind in ("QUANTIZE", "CONSTANT") for kind in layer.types}
    return kinds & {*NARROW_INTEGERS, "FP8", "FP4"}


def is_quantized(layers: Iterable[ParsedLayer]) -> bool:
    """Whether the network holds quantised tensors."""
    return any(layer.kind in ("QUANTIZE", "DEQUANTIZE", "DYNAMIC_QUANTIZE") for layer in layers)
