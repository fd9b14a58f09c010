"""Checks of the tensors of a model file, as stated against as stored, before memory is taken for any of it.

A tensor names its element type and its sides, and holds its values in one of several fields or in a file beside the
model. The full checker of onnx looks at neither their number nor the file's size.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, TensorProto, and docs/ExternalData.md there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx.helper

from vsfix.graph_passes.errors import ModelError

_T = onnx.TensorProto
_PER_BYTE: dict[int, int] = {
    getattr(_T, name): count
    for count, names in {2: ("INT4", "UINT4", "FLOAT4E2M1"), 4: ("INT2", "UINT2")}.items()
    for name in names
    if hasattr(_T, name)
}
_LARGE = 1 << 30  # bytes that may come from files however small these are
_MOST_SHARING = 32  # layers whose tied weights stand in the file once
_PARTS: dict[int, int] = {_T.COMPLEX64: 2, _T.COMPLEX128: 2}  # entries of a typed field that make one element


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that a model holds: weights, attributes, those of subgraphs and of local functions."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
        yield from _attribute_tensors(function.attribute_proto)


def external_location(tensor: onnx.TensorProto) -> str | None:
    """The file that a tensor takes its values from, by its own account; None where it holds them itself."""
    if tensor.data_location != _T.EXTERNAL:
        return None
    return _external_entries(tensor).get("location", "")


def check_stored_tensors(model: onnx.ModelProto, folder: Path) -> None:
    """Refuses tensors whose values are not there, are too many or too few, or lie outside of the model's folder.

    Args:
        model: as stored in the file, external data not loaded.
        folder: of the file.

    Raises:
        ModelError: with the name of the tensor.
    """
    claimed = 0
    sizes: dict[tuple[int, int], int] = {}
    for tensor in tensors_of(model):
        said = f"tensor '{tensor.name}' of type {_type_name(tensor)} and shape {list(tensor.dims)}"
        if any(side < 0 for side in tensor.dims):
            raise ModelError(f"{said}: a side is negative")
        if tensor.data_type == _T.UNDEFINED or tensor.data_type not in _T.DataType.values():
            raise ModelError(f"{said}: its element type is none that ONNX has")
        if tensor.data_location == _T.EXTERNAL:
            status = _check_file(tensor, folder, said)
            sizes[status.st_dev, status.st_ino] = status.st_size
            claimed += stored_bytes(tensor)
        else:
            _check_values(tensor, said)
    if claimed > _LARGE and claimed > _MOST_SHARING * sum(sizes.values()):
        raise ModelError(
            f"its tensors take {claimed >> 20} MiB from files of {sum(sizes.values()) >> 20} MiB: over {_MOST_SHARING} "
            "times the same values"
        )


def _check_values(tensor: onnx.TensorProto, said: str) -> None:
    """Refuses a tensor that holds another number of values than its shape wants."""
    if tensor.HasField("raw_data"):
        wanted, found = stored_bytes(tensor), len(tensor.raw_data)
        if tensor.data_type == _T.STRING:
            raise ModelError(f"{said}: holds text as raw bytes, which ONNX does not allow")
        if wanted != found:
            raise ModelError(f"{said}: holds {found} bytes where its shape wants {wanted}")
        return
    count = prod(tensor.dims)
    wanted = -(-count // _PER_BYTE.get(tensor.data_type, 1)) * _PARTS.get(tensor.data_type, 1)
    found = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type)))
    if found != wanted:
        raise ModelError(f"{said}: holds {found} values where its shape wants {wanted}")


def _check_file(tensor: onnx.TensorProto, folder: Path, said: str) -> os.stat_result:
    """Refuses values in a file that is not there, lies elsewhere, or is too short; returns the status of the file."""
    entries = _external_entries(tensor)
    file = _inside(folder, entries.get("location", ""), said)
    status = file.stat()
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries["length"]) if "length" in entries else status.st_size - offset
    except ValueError:
        raise ModelError(f"{said}: the position of its values in '{file.name}' is no number") from None
    if tensor.data_type == _T.STRING:
        raise ModelError(f"{said}: text can't stand in a file of its own")
    if offset < 0 or length < 0 or offset + length > status.st_size:
        raise ModelError(f"{said}: its values would stand outside of '{file.name}' ({status.st_size} bytes)")
    if length != stored_bytes(tensor):
        raise ModelError(
            f"{said}: '{file.name}' holds {length} bytes for it where its shape wants {stored_bytes(tensor)}"
        )
    return status


def _inside(folder: Path, location: str, said: str) -> Path:
    """The file of a location, which must lie in the folder and be no link out of it."""
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    is_absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
    if not location or "\0" in location or is_absolute or ".." in parts:
        raise ModelError(f"{said}: its values are said to be in '{location}', which is not below the model's folder")
    file = folder / location
    try:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{said}: '{location}' is a link out of the model's folder")
        is_there = file.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, a link to itself, a folder that is closed
        raise ModelError(f"{said}: '{location[:100]}' can't be looked at ({error})") from None
    if not is_there:
        raise ModelError(f"{said}: its values are said to be in '{location}', and there is no such file")
    return file


def _external_entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """The bytes that the values of a tensor take by its type and shape."""
    count = int(prod(tensor.dims))
    if tensor.data_type in _PER_BYTE:
        return -(-count // _PER_BYTE[tensor.data_type])
    if tensor.data_type == _T.STRING:
        return 0
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _type_name(tensor: onnx.TensorProto) -> str:
    known = tensor.data_type in _T.DataType.values()
    return _T.DataType.Name(tensor.data_type) if known else str(tensor.data_type)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The initializers of a graph, and the tensors in its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """The tensors in the attributes of nodes, those of subgraphs included."""
    for node in nodes:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    """The tensors in attributes, those of subgraphs included."""
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []:
            yield from (sparse.values, sparse.indices)
        for graph in [attribute.g] if attribute.HasField("g") else []:
            yield from _graph_tensors(graph)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)
