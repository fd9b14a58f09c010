"""The layers of a network or an engine as plain data, free of TensorRT's own objects.

Types are named as TensorRT names them: FLOAT, HALF, BF16, FP8, INT8, INT32 and so on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vsfix.graph_passes.errors import BuildError
from vsfix.graph_passes.ir.runtime import Array

FLOAT_TYPES = ("FLOAT", "HALF", "BF16", "FP8", "FP4")
NARROW_INTEGERS = ("INT8", "INT4")
COMPUTING = frozenset(
    {"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "FULLY_CONNECTED", "EINSUM", "ATTENTION_OUTPUT"}
)
Shares = Mapping[str, Mapping[str, int]]


_SPELLINGS = {
    "BF16": r"bf16|bfloat16",
    "HALF": r"fp16|half|float16",
    "FP8": r"fp8|float8",
    "FP4": r"fp4|float4",
    "INT8": r"int8",
    "INT4": r"int4",
    "INT64": r"int64",
    "INT32": r"int32",
    "BOOL": r"bool",
    "FLOAT": r"fp32|float32|float",
}
_QUANTIZED = frozenset({"INT8", "INT4", "FP8", "FP4"})
_PLUMBING = ("reformat", "noop", "constant", "shape", "cast", "signal", "wait")
_TENSOR_FLOAT = re.compile(r"tf32", re.IGNORECASE)


class UnreadableValues(Exception):
    """The values of a layer are unavailable; the message says why. Never reaches a user."""


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


def read_inspection(text: str) -> tuple[EngineLayer, ...]:
    """Reads the inspector's JSON.

    Raises:
        BuildError: it is none, or names layers without saying anything of them.
    """
    try:
        document = json.loads(text)
    except ValueError:
        raise BuildError("the engine's inspector does not answer in JSON") from None
    layers = document.get("Layers", []) if isinstance(document, dict) else []
    if any(not isinstance(layer, dict) for layer in layers):
        raise BuildError("the engine's inspector gives the names of its layers only, although details were asked for")
    return tuple(
        EngineLayer(
            str(layer.get("Name", "")),
            str(layer.get("LayerType", "")),
            tuple(kind for tensor in layer.get("Outputs", []) for kind in _type(tensor)),
            str(layer.get("TacticName", "")),
        )
        for layer in layers
    )


def count_tensor_float(layers: Iterable[EngineLayer]) -> int:
    """How many layers run a kernel that rounds float32 to TensorFloat-32."""
    return sum(bool(_TENSOR_FLOAT.search(layer.tactic)) for layer in layers)


def check_precision(network: Iterable[ParsedLayer], engine: Iterable[EngineLayer], *, tensor_float: bool) -> None:
    """Holds an engine against the network that it was built from.

    Args:
        network: what was parsed, in the types of the file.
        engine: what was built.
        tensor_float: whether TF32 was allowed.

    Raises:
        BuildError: the engine computes in a type that was not asked for, or not in one that was.
    """
    network, engine = list(network), [layer for layer in engine if not _is_plumbing(layer)]
    counted = FLOAT_TYPES + NARROW_INTEGERS
    found = {kind for layer in engine for kind in layer.types if kind in counted}
    allowed = {kind for layer in network for kind in layer.types if kind in counted}
    wrong = [layer for layer in engine if any(kind in counted and kind not in allowed for kind in layer.types)]
    if wrong:
        raise BuildError(
            f"layer '{wrong[0].name}' of the engine is {', '.join(wrong[0].types)}, but the file holds only "
            f"{', '.join(sorted(allowed))} ({len(wrong)} of {len(engine)} layers)"
        )
    if not tensor_float and count_tensor_float(engine):
        named = next(layer for layer in engine if _TENSOR_FLOAT.search(layer.tactic))
        raise BuildError(f"layer '{named.name}' of the engine runs a TF32 kernel, although TF32 is off")
    if is_quantized(network):
        if found.isdisjoint(_QUANTIZED):
            raise BuildError("the file is quantised, but no layer of the engine gives a quantised tensor")
        return
    missing = sorted(set(computing_types(network)) - found)
    if missing and found:
        raise BuildError(
            f"the file asks for {', '.join(missing)}, but the engine computes in {', '.join(sorted(found))} alone"
        )


def _is_plumbing(layer: EngineLayer) -> bool:
    """Whether a layer only moves or converts."""
    return any(word in layer.kind.lower() for word in _PLUMBING)


def _type(tensor: Any) -> tuple[str, ...]:
    """The type of a tensor, in TensorRT's name for it; none where the inspector does not say."""
    if not isinstance(tensor, Mapping):
        return ()
    text = str(tensor.get("DataType") or tensor.get("Format/Datatype") or "").lower()
    return next(((kind,) for kind, pattern in _SPELLINGS.items() if re.search(pattern, text)), ())
