"""The types of a file in a TensorRT that has no strongly typed networks (8.6), where a type is only a permission.

Every type that the file has is permitted, and its layers are pinned to the types that the parser read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .engine_layers import ParsedLayer, is_quantized

_NOT_PINNED = frozenset({"CONSTANT", "SHAPE", "CAST", "IDENTITY", "SHUFFLE", "QUANTIZE", "DEQUANTIZE", "ASSERTION"})


def permit_file_types(trt: Any, config: Any, network: Any, layers: Sequence[ParsedLayer]) -> None:
    """Permits the types of the file, pins its layers to them, and leaves out cuBLAS and cuDNN.

    Args:
        trt: the library.
        config: of the build; changed.
        network: its layers are changed.
        layers: those of the network as they were parsed, in its order.
    """
    sources = config.get_tactic_sources()
    for name in ("CUBLAS", "CUBLAS_LT", "CUDNN"):
        if hasattr(trt.TacticSource, name):
            sources &= ~(1 << int(getattr(trt.TacticSource, name)))
    config.set_tactic_sources(sources)
    types = {kind for layer in layers for kind in layer.types}
    if is_quantized(layers):
        config.set_flag(trt.BuilderFlag.INT8)
        if "FP8" in types:
            config.set_flag(trt.BuilderFlag.FP8)
    if "HALF" in types:
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        for index, layer in enumerate(layers):
            if layer.kind not in _NOT_PINNED and layer.types and set(layer.types) <= {"FLOAT", "HALF"}:
                _pin(network.get_layer(index), len(layer.types))


def _pin(layer: Any, outputs: int) -> None:
    """Keeps a layer in the types that the parser read from the file."""
    layer.precision = layer.get_output(0).dtype
    for index in range(outputs):
        layer.set_output_type(index, layer.get_output(index).dtype)
