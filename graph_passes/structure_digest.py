"""A digest of everything that a model computes with, but for the values of some of its weights.

Two models with the same digest have the same nodes, names, types and shapes and differ in those values alone: what was
compiled for one of them serves the other, once it has the other's values. What a model only says about itself
(metadata_props, doc strings, producer, value_info) is no part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
import onnx.numpy_helper

from .file_values import values_of
from .inference import Array


def structure_digest(model: onnx.ModelProto, free: Collection[str]) -> str:
    """The SHA-256 of a model without the values of the initializers that are named.

    Args:
        model: with its weights in memory.
        free: names of initializers whose values don't count; their shapes and types do.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in _parts(model, free):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def values_digest(values: Array) -> str:
    """The SHA-256 of the bytes of an array in C order, 64 hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def initializer_values(model: onnx.ModelProto, names: Collection[str]) -> Mapping[str, Array]:
    """The values of the initializers that are named, in the order of the model."""
    return {tensor.name: values_of(tensor) for tensor in model.graph.initializer if tensor.name in names}


def _parts(model: onnx.ModelProto, free: Collection[str]) -> Iterator[bytes]:
    """What the digest is made of, piece by piece."""
    for opset in sorted(model.opset_import, key=lambda entry: entry.domain):
        yield f"opset {opset.domain or 'ai.onnx'} {opset.version}".encode()
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            yield f"{kind} {value.name}".encode()
            yield value.type.SerializeToString(deterministic=True)
    for node in model.graph.node:
        yield "\n".join((node.domain, node.op_type, node.name, "", *node.input, "", *node.output)).encode()
        for attribute in sorted(node.attribute, key=lambda entry: entry.name):
            yield attribute.SerializeToString(deterministic=True)
    for tensor in sorted(model.graph.initializer, key=lambda entry: entry.name):
        yield f"weight {tensor.name} {tensor.data_type} {tuple(tensor.dims)}".encode()
        if tensor.name not in free:
            yield _bytes(tensor)
    for sparse in model.graph.sparse_initializer:
        yield sparse.SerializeToString(deterministic=True)


def _bytes(tensor: onnx.TensorProto) -> bytes:
    """The values, however the file holds them."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return b"\0".join(tensor.string_data)
    return values_of(tensor).tobytes()
