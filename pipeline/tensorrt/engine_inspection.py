"""What the inspector of a built engine says of its layers, in the forms of TensorRT 8.6, 10 and 11.

Up to 10 a tensor has one field, `Format/Datatype`, whose text names the type among other things ("Row major linear
FP16 format"); 11 has a field `DataType` of its own. Newer versions fuse much of a network into layers of their own
compiler, of which only the outer tensors are told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vsfix.graph_passes.errors import BuildError

from .engine_layers import FLOAT_TYPES, NARROW_INTEGERS, EngineLayer, ParsedLayer, computing_types, is_quantized

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
