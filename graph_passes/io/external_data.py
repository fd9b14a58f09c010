"""Models larger than 2 GiB, where a protobuf message ends: their weights are in a file of their own.

In memory a message may be larger, but then it can't be serialized, and so not be copied into another message either.
What handles such a model here moves its tensors one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.helper
import onnx.numpy_helper
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, update_import_domains
from onnx_graphsurgeon.ir.tensor import SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from vsfix.graph_passes.ir.graph import Tensor
from vsfix.graph_passes.ir.stored_values import FileValues, file_of, values_of

from .file_values import can_stay_in_file, is_large, put_into_file, refer_to_file
from .named_file import why_unreadable
from .stored_tensors import external_location, tensors_of

MAX_MODEL_BYTES = 2**31  # a protobuf message ends here
# The limit of protobuf, less what the nodes of even a large graph take.
MAX_SINGLE_FILE_WEIGHTS = 2**31 - 2**26
INLINE_BELOW = 1024  # bytes; shapes, axes and ratios stay in the graph, where every tool looks for them
_ALIGNMENT = 4096  # a runtime that maps the file wants each large tensor to begin on a page


def external_data_path(path: Path) -> Path:
    """The file for the weights of the model at `path` where they don't fit into it: `<name>.onnx.data` beside it."""
    return path.with_name(path.name + ".data")


def external_data_files(path: Path) -> tuple[Path, ...]:
    """The files that the model at `path` takes weights from; empty where it is no model or holds all of them."""
    if why_unreadable(path, MAX_MODEL_BYTES) is not None:
        return ()
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, OSError):
        return ()
    locations = dict.fromkeys(external_location(tensor) for tensor in tensors_of(model))
    return tuple(path.parent / location for location in locations if location and "\0" not in location)


def weight_bytes(model: onnx.ModelProto) -> int:
    """The bytes that the initializers of the main graph take."""
    return sum(_size(tensor) for tensor in model.graph.initializer)


def fits_one_file(model: onnx.ModelProto) -> bool:
    """Whether a protobuf message can hold the model, and holds all of it."""
    if any(file_of(tensor) is not None for tensor in model.graph.initializer):
        return False
    return weight_bytes(model) <= MAX_SINGLE_FILE_WEIGHTS


def load_weights(model: onnx.ModelProto, folder: Path) -> None:
    """Reads the weights that the model takes from other files; past 2 GiB the large ones stay in their files.

    Raises:
        ValueError, OSError, RuntimeError, onnx.checker.ValidationError: they can't be read.
    """
    stay = []
    if weight_bytes(model) > MAX_SINGLE_FILE_WEIGHTS:
        stay = [tensor for tensor in model.graph.initializer if can_stay_in_file(tensor)]
    for tensor in stay:
        tensor.data_location = onnx.TensorProto.DEFAULT  # out of the sight of onnx
    onnx.external_data_helper.load_external_data_for_model(model, str(folder))
    for tensor in stay:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        refer_to_file(tensor, (folder / entries["location"]).absolute(), int(entries.get("offset", "0")))


def detach_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """A model without the values of its large initializers, and the tensors that hold them, by name.

    Args:
        model: not changed; no second copy of the large values is made.

    Returns:
        The model, in which the large initializers refer to a file that is not named yet, and their tensors.
    """
    skeleton = onnx.ModelProto()
    _merge(model, skeleton, skip="graph")
    _merge(model.graph, skeleton.graph, skip="initializer")
    detached: dict[str, onnx.TensorProto] = {}
    for tensor in model.graph.initializer:
        entry = skeleton.graph.initializer.add()
        if _size(tensor) < INLINE_BELOW or tensor.data_type == onnx.TensorProto.STRING:
            entry.CopyFrom(tensor)
            continue
        entry.name, entry.data_type = tensor.name, tensor.data_type
        entry.dims.extend(tensor.dims)
        entry.data_location = onnx.TensorProto.EXTERNAL
        entry.external_data.add(key="location", value="weights")
        detached[tensor.name] = tensor
    return skeleton, detached


def save_with_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Writes a model to `path` and its large initializers to `external_data_path(path)`; `model` is not changed.

    Raises:
        OSError: the file system refuses the write.
        ValueError, google.protobuf.message.EncodeError: the graph without its initializers is too large as well.
    """
    skeleton, detached = detach_weights(model)
    data = external_data_path(path)
    with data.open("wb") as file:
        for entry in skeleton.graph.initializer:
            if entry.name not in detached:
                continue
            file.seek(-file.tell() % _ALIGNMENT, 1)
            offset = file.tell()
            length = file.write(_raw(detached[entry.name]))
            del entry.external_data[:]
            for key, value in (("location", data.name), ("offset", str(offset)), ("length", str(length))):
                entry.external_data.add(key=key, value=value)
    onnx.save(skeleton, path, format="protobuf")


def export_any_size(graph: gs.Graph) -> onnx.ModelProto:
    """The graph as a model, however large.

    onnx-graphsurgeon copies each weight three times, twice between messages, which end at 2 GiB. Here each is written
    into the model itself; past 2 GiB computed values go into a file.
    """
    with G_LOGGER.suppress(G_LOGGER.ERROR):
        tensors = list(graph.tensors().values())
        constants = [tensor for tensor in tensors if isinstance(tensor, gs.Constant)]
        if sum(map(_bytes, constants)) > MAX_SINGLE_FILE_WEIGHTS:
            for constant in constants:
                if isinstance(constant._values, np.ndarray) and is_large(constant._values.nbytes):
                    constant.values = FileValues(put_into_file(constant._values))
        model = onnx.ModelProto(
            ir_version=onnx.IR_VERSION if graph.ir_version is None else graph.ir_version,
            producer_name=graph.producer_name,
            producer_version=graph.producer_version,
            opset_import=update_import_domains(graph),
            functions=map(OnnxExporter.export_function, graph.functions),
        )
        model.graph.name = graph.name
        if graph.doc_string:
            model.graph.doc_string = graph.doc_string
        model.graph.node.extend(map(OnnxExporter.export_node, graph.nodes))
        for messages, stated in (
            (model.graph.input, graph.inputs),
            (model.graph.output, graph.outputs),
            (model.graph.value_info, _inner_variables(graph, tensors)),
        ):
            messages.extend(OnnxExporter.export_value_info_proto(tensor, False) for tensor in stated)
        for constant in constants:
            if isinstance(constant._values, SparseValues):
                model.graph.sparse_initializer.append(OnnxExporter.export_sparse_tensor_proto(constant))
            else:
                _fill(model.graph.initializer.add(), constant)
    return model


def _inner_variables(graph: gs.Graph, tensors: Iterable[Tensor]) -> Iterator[gs.Variable]:
    """The variables whose type or shape is stated, but for the inputs and outputs of the graph."""
    outer = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
    for tensor in tensors:
        if not isinstance(tensor, gs.Variable) or tensor.name in outer:
            continue
        if tensor.dtype is not None or tensor.shape is not None:
            yield tensor


def _bytes(constant: gs.Constant) -> int:
    """The bytes of a constant; 0 for one that is not copied."""
    values = constant._values
    if isinstance(values, np.ndarray):
        return int(values.nbytes)
    if isinstance(values, SparseValues) or values.tensor.data_type == onnx.TensorProto.STRING:
        return 0
    return _size(values.tensor)


def _fill(tensor: onnx.TensorProto, constant: gs.Constant) -> None:
    """Puts a constant into a tensor of a model."""
    values = constant._values
    is_small = _bytes(constant) < INLINE_BELOW or constant.dtype != constant.export_dtype
    if isinstance(values, FileValues) or is_small:
        tensor.CopyFrom(values.tensor if isinstance(values, FileValues) else OnnxExporter.export_tensor_proto(constant))
        tensor.name = constant.name
        return
    raw: bytes | memoryview
    if isinstance(values, np.ndarray):
        shape, code, raw = values.shape, onnx.helper.np_dtype_to_tensor_dtype(values.dtype), values.tobytes()
    else:
        shape, code, raw = values.tensor.dims, values.tensor.data_type, _raw(values.tensor)
    tensor.name, tensor.data_type, tensor.raw_data = constant.name, code, bytes(raw)
    tensor.dims.extend(shape)


def _size(tensor: onnx.TensorProto) -> int:
    """The bytes of a tensor's values, without looking at them."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(prod(tensor.dims)) * itemsize


def _raw(tensor: onnx.TensorProto) -> bytes | memoryview:
    """The values of a tensor as the standard lays them out in a file."""
    if file_of(tensor) is not None:
        return values_of(tensor).reshape(-1).view(np.uint8).data
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data


def _merge(source: onnx.ModelProto | onnx.GraphProto, target: onnx.ModelProto | onnx.GraphProto, *, skip: str) -> None:
    """Copies every field of a message but one."""
    for field, value in source.ListFields():
        if field.name == skip:
            continue
        if hasattr(value, "__len__") and not isinstance(value, (str, bytes)):
            getattr(target, field.name).MergeFrom(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
