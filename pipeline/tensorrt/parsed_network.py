"""A network as TensorRT's parser made it, read into plain data; no GPU is needed for that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.ir.runtime import Array

from .engine_layers import ParsedLayer, UnreadableValues, is_quantized
from .parse_errors import ParseError

_VALUES = {
    "SCALE": ("IScaleLayer", ("scale", "shift", "power")),
    "CONVOLUTION": ("IConvolutionLayer", ("kernel", "bias")),
    "DECONVOLUTION": ("IDeconvolutionLayer", ("kernel", "bias")),
    "CONSTANT": ("IConstantLayer", ("weights",)),
}


_NOT_PINNED = frozenset({"CONSTANT", "SHAPE", "CAST", "IDENTITY", "SHUFFLE", "QUANTIZE", "DEQUANTIZE", "ASSERTION"})


@dataclass(frozen=True)
class NetworkTensor:
    """An input or output of a network.

    Attributes:
        name: in the file and in the engine.
        type: FLOAT, HALF, INT64 and so on.
        shape: -1 for a dynamic side.
    """

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ParsedNetwork:
    """A network as TensorRT reads it from a file.

    Attributes:
        layers: in TensorRT's order.
        inputs: in the order of the file.
        outputs: the same.
        handles: TensorRT's own objects (builder, network, parser), which must live as long as each other.
    """

    layers: tuple[ParsedLayer, ...]
    inputs: tuple[NetworkTensor, ...]
    outputs: tuple[NetworkTensor, ...]
    handles: tuple[Any, Any, Any] = field(repr=False, compare=False)


def read_network(library: Any, builder: Any, network: Any, parser: Any) -> ParsedNetwork:
    """The layers of a network, its inputs and its outputs.

    Raises:
        InputError: an input holds a shape, and would need a range of values, which nothing here gives.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in inputs:
        if tensor.is_shape_tensor:
            raise InputError(f"input '{tensor.name}' holds a shape; make it a constant of the model before building")
    layers = tuple(_read_layer(library, network.get_layer(index)) for index in range(network.num_layers))
    return ParsedNetwork(
        layers, tuple(map(_read_tensor, inputs)), tuple(map(_read_tensor, outputs)), (builder, network, parser)
    )


def read_errors(parser: Any) -> list[ParseError]:
    """The errors of a parser; 8.6 knows neither the name nor the operator of a node."""
    return [_read_error(parser.get_error(index)) for index in range(parser.num_errors)]


def _read_error(error: Any) -> ParseError:
    name, operator = (getattr(error, attribute, None) for attribute in ("node_name", "node_operator"))
    return ParseError(error.desc(), error.node(), str(name() if name else ""), str(operator() if operator else ""))


def _read_tensor(tensor: Any) -> NetworkTensor:
    return NetworkTensor(str(tensor.name), tensor.dtype.name, tuple(int(side) for side in tensor.shape))


def _read_layer(library: Any, layer: Any) -> ParsedLayer:
    kind = layer.type.name
    types = tuple(layer.get_output(index).dtype.name for index in range(layer.num_outputs))
    node = re.fullmatch(r"\[ONNX Layer: (.*)\]", str(getattr(layer, "metadata", "")), re.DOTALL)
    return ParsedLayer(
        str(layer.name), node[1] if node else "", kind, types, partial(_read_values, library, layer, kind)
    )


def _read_values(library: Any, layer: Any, kind: str) -> dict[str, Array]:
    """The weights of a layer. A layer comes as an ILayer; its class says what else can be asked of it."""
    if kind not in _VALUES:
        return {}
    interface, names = _VALUES[kind]
    layer.__class__ = getattr(library, interface)
    found: dict[str, Array] = {}
    for name in names:
        values: Any = getattr(layer, name)
        if not isinstance(values, np.ndarray) and getattr(values, "size", 0) > 0:
            raise UnreadableValues(f"TensorRT shows no {values.dtype.name} values to Python")
        found[name] = np.array(values if isinstance(values, np.ndarray) else [], copy=True).reshape(-1)
    return found


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
