"""In which types an engine computes: demanded of the file before the build, and proven of the engine after it.

What was asked for and not got is an error: TensorRT itself builds a float32 file without a word where fp16 was wanted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import BuildError, InputError, MissingComponentError
from vsfix.graph_passes.precision.quantized_layers import find_quantized_layers
from vsfix.pipeline.tensorrt.engine_layers import (
    ParsedLayer,
    Shares,
    check_precision,
    computing_types,
    count_tensor_float,
    count_types,
    quantized_types,
)
from vsfix.pipeline.tensorrt.library import TensorRt
from vsfix.pipeline.tensorrt.parsed_network import ParsedNetwork
from vsfix.pipeline.tensorrt.shape_profile import ShapeRange

_TYPES = {"fp32": "FLOAT", "tf32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
_QUANTIZED = {"int8": "INT8", "fp8": "FP8"}
_NAMES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "FP8": "fp8"}
_FIRST_WITH_FLOAT8 = 89
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrecisionProof:
    """In which types an engine computes, and how that is known.

    Attributes:
        asked: as `--precision` takes it; None for whatever the file says.
        tensor_float: whether TF32 was allowed.
        typing: `strong` where the types of the file bind the builder, `flags` where they are a permission (8.6).
        source: `engine inspector`, or `parsed network` where no engine can be loaded here.
        reason: why it is only the parsed network; empty otherwise.
        network: layers of the parsed network by kind and type.
        engine: layers of the engine by kind and type; None where it can't be loaded.
        tensor_float_layers: layers of the engine whose kernel rounds to TF32; None where it can't be loaded.
    """

    asked: str | None
    tensor_float: bool
    typing: str
    source: str
    reason: str
    network: Shares
    engine: Shares | None
    tensor_float_layers: int | None


def require_precision(path: Path, layers: Sequence[ParsedLayer], asked: str | None) -> None:
    """Refuses a file that does not say what was asked for: the builder computes in the types of the file.

    Args:
        path: the file.
        layers: what TensorRT parsed of it.
        asked: as `--precision` takes it; None for whatever it says.

    Raises:
        InputError: says what there is, and the command that makes the other.
    """
    quantized = quantized_types(layers)
    if asked is None:
        return
    if asked in _QUANTIZED:
        if quantized != {_QUANTIZED[asked]}:
            told = "quantised to " + ", ".join(_NAMES.get(kind, kind) for kind in sorted(quantized))
            raise InputError(
                f"{path}: --precision {asked} was asked for, but the file is {told if quantized else 'not quantised'}; "
                f"quantise the float32 model with `vsfix optimize --precision {asked} --data D`"
            )
        return
    if quantized:
        raise InputError(f"{path}: holds quantised layers, so that --precision {asked} is unavailable; leave it out")
    found = computing_types(layers)
    wrong = {kind: count for kind, count in found.items() if kind != _TYPES[asked]}
    if wrong or not found:
        told = ", ".join(f"{count} in {_NAMES.get(kind, kind)}" for kind, count in found.items()) or "none in float"
        cast = "fp32" if asked == "tf32" else asked
        mixed = "; leave --precision out for a file of several (--keep-metric)" if len(found) > 1 else ""
        raise InputError(
            f"{path}: --precision {asked} was asked for, but of the layers that compute there are {told}; cast the "
            f"model with `vsfix optimize --precision {cast}`{mixed}"
        )


def require_quantized_layers(path: Path, graph: gs.Graph, asked: str | None) -> None:
    """Refuses a file that holds quantised tensors and computes in float all the same; warns of one that partly does.

    A quantised input, or weights that are only stored in eight bits, leave every layer in float.

    Args:
        path: the file.
        graph: what stands in it.
        asked: as `--precision` takes it.

    Raises:
        InputError: none of its layers reads its data and its weight quantised.
    """
    if asked not in _QUANTIZED:
        return
    layers = find_quantized_layers(graph)
    if layers.plain and not layers.quantized:
        raise InputError(
            f"{path}: --precision {asked} was asked for, and the file holds quantised tensors, but none of its "
            f"{layers.total} layers with a weight has both data and weight quantised: all compute in float; quantise "
            f"the float32 model with `vsfix optimize --precision {asked} --data D`"
        )
    if layers.plain:
        _LOGGER.warning(
            "%d of %d layers with a weight compute in float, '%s' the first",
            len(layers.plain),
            layers.total,
            layers.plain[0],
        )


def require_float8_targets(path: Path, layers: Sequence[ParsedLayer], targets: Sequence[str]) -> None:
    """Refuses GPUs without float8 arithmetic for a file that is quantised to it.

    Raises:
        InputError: names them.
    """
    if "FP8" not in quantized_types(layers):
        return
    without = [name for name in targets if name[2:].isdigit() and int(name[2:]) < _FIRST_WITH_FLOAT8]
    if without:
        raise InputError(
            f"{path}: is quantised to fp8, which {', '.join(without)} does not compute in: fp8 needs "
            f"sm{_FIRST_WITH_FLOAT8} or newer; leave {'it' if len(without) == 1 else 'them'} out of --target, or "
            "quantise with --precision int8"
        )


def prove_precision(
    library: TensorRt, parsed: ParsedNetwork, plan: bytes, asked: str | None, profile: Mapping[str, ShapeRange]
) -> PrecisionProof:
    """Asks the engine in which types it computes; where it can't be loaded, says so and tells of the network.

    Args:
        library: that built it.
        parsed: what it was built from.
        plan: the engine.
        asked: as `--precision` takes it.
        profile: its shapes.

    Raises:
        BuildError: it computes in another type, or TensorRT does not load what it built for this GPU.
    """
    network = count_types(parsed.layers)
    typing = "strong" if library.is_strongly_typed else "flags"
    try:
        loaded = library.load(plan)
    except (BuildError, MissingComponentError) as error:
        if isinstance(error, BuildError) and not library.capabilities:
            raise
        # TensorRT-RTX builds for other GPUs than the one here.
        return PrecisionProof(asked, asked == "tf32", typing, "parsed network", str(error), network, None, None)
    with loaded:
        layers = loaded.inspect(profile)
    check_precision(parsed.layers, layers, tensor_float=asked == "tf32")
    tensor_float_layers = count_tensor_float(layers)
    return PrecisionProof(
        asked, asked == "tf32", typing, "engine inspector", "", network, count_types(layers), tensor_float_layers
    )
