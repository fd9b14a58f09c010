"""ONNX files: read with every check, written whole or not at all, and turned into a graph that can be edited.

`onnx_graphsurgeon` carries a graph but not everything around it: a model's metadata_props, doc string, domain and
version are lost on its way back. `export_model` therefore takes the model that the graph came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx.checker
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError, EncodeError, Message
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from vsfix.graph_passes.errors import InputError, ModelError, first_line
from vsfix.graph_passes.ir.graph import Tensor
from vsfix.graph_passes.ir.stored_values import FileValues, file_of
from vsfix.graph_passes.progress import stage

from .atomic_file import atomic_path, atomic_paths
from .external_data import (
    MAX_MODEL_BYTES,
    detach_weights,
    export_any_size,
    external_data_files,
    external_data_path,
    fits_one_file,
    load_weights,
    save_with_external_data,
)
from .local_functions import inline_functions, require_inlinable
from .named_file import why_unreadable
from .stored_tensors import check_stored_tensors

_LONGEST_REASON = 300  # characters of the checker's message


def read_model(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file with its weights and checks it in full; local functions are inlined.

    Weights in files of their own (external data) are read too; of a model past 2 GiB they stay there (`file_values`).

    Raises:
        ModelError: the file is missing, is no ONNX file, does not pass the full checker, or a tensor in it holds other
            values than it claims, or takes them from outside of the file's folder.
    """
    with stage(f"reading {path.name}"):
        return _read_model(path)


def _read_model(path: Path) -> onnx.ModelProto:
    """The model; see `read_model`."""
    try:
        if path.is_dir():
            raise ModelError(f"{path}: is a folder; name an ONNX file, as `vsfix export` makes one of a training run")
        if (reason := why_unreadable(path, MAX_MODEL_BYTES)) is not None:
            raise ModelError(f"{path}: {reason}")
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror or error})") from error
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{path}: is not an ONNX file, or is cut short ({first_line(error)})") from error
    if not model.graph.node and not model.graph.output:
        raise ModelError(f"{path}: is not an ONNX file, or holds an empty graph")
    if (text := next((text for text in _texts(model) if isinstance(text, bytes)), None)) is not None:
        raise ModelError(f"{path}: holds a text that is not UTF-8, as ONNX wants it: {text[:100]!r}")
    try:
        check_stored_tensors(model, path.parent)
        require_inlinable(model)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    check_model(path)
    _free_negative_sides(model.graph)
    if (reference := _attribute_reference(model.graph)) is not None:
        raise ModelError(f"{path}: {reference}")
    if model.functions:  # before the weights are there: the inliner serializes the model, which ends at 2 GiB
        model = _inline_functions(model, path)
    try:
        load_weights(model, path.parent)
    except (ValueError, OSError, RuntimeError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: its weights in other files can't be read ({first_line(error)})") from error
    return model


def _texts(message: Message) -> Iterator[str | bytes]:
    """Every text in a message and in those that it holds, as bytes where it is not UTF-8."""
    for field in message.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING:
            value = getattr(message, field.name)
            yield from (value,) if isinstance(value, str | bytes) else value
        elif field.message_type is not None:
            value = getattr(message, field.name)
            if not isinstance(value, Message):
                for part in value:
                    yield from _texts(part)
            elif message.HasField(field.name):
                yield from _texts(value)


def _free_negative_sides(graph: onnx.GraphProto) -> None:
    """Writes a side of -1, by which some exporters say that any length fits, as ONNX says it: by no value."""
    for info in (*graph.input, *graph.output, *graph.value_info):
        for side in info.type.tensor_type.shape.dim:
            if side.dim_value < 0:
                side.ClearField("dim_value")


def _attribute_reference(graph: onnx.GraphProto) -> str | None:
    """An attribute that refers to one of a function, with none around it; the checker sees that in subgraphs only."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                return (
                    f"{node.op_type} '{node.name or ', '.join(node.output)}': its attribute '{attribute.name}' refers "
                    "to one of a function, but the node stands in none"
                )
    return None


def _inline_functions(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model without local functions."""
    try:
        return inline_functions(model)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: its local functions can't be inlined ({first_line(error)})") from error


def check_model(path: Path) -> None:
    """Runs the full checker, shape inference included, on a file.

    Raises:
        ModelError: with the checker's message, in one line.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ModelError(f"{str(path)!a}: its name is not UTF-8, which onnx needs; rename it") from None
    _check(str(path), path)


def check_without_weights(model: onnx.ModelProto, path: Path) -> None:
    """Runs the full checker on a model in memory, its large initializers as inputs of the same type and shape.

    Their values mean nothing to the checker, and two thirds of its time would go into copies of them.

    Args:
        model: not changed; it fits into a file, and its initializers hold as many values as they say.
        path: where it goes, for the message.

    Raises:
        ModelError: with the checker's message, in one line.
    """
    skeleton, detached = detach_weights(model)
    initializers, inputs = list(skeleton.graph.initializer), {info.name for info in skeleton.graph.input}
    del skeleton.graph.initializer[:]
    skeleton.graph.initializer.extend(tensor for tensor in initializers if tensor.name not in detached)
    skeleton.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in initializers
        if tensor.name in detached and tensor.name not in inputs
    )
    _check(skeleton, path)


def _check(model: onnx.ModelProto | str, path: Path) -> None:
    """Runs the full checker on a model or on the file of that name."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())  # the name of the node stands in a line of its own
        raise ModelError(f"{path}: the ONNX checker refuses it: {said[:_LONGEST_REASON]}") from error


def write_model(model: onnx.ModelProto, path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Writes `model` and checks the file in full before it appears under its name, as `written_model` does."""
    with written_model(model, path, force=force, inputs=inputs):
        pass


@contextmanager
def written_model(model: onnx.ModelProto, path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> Iterator[None]:
    """Writes `model` and checks the file in full; it appears under its name at the end of the context.

    Files that belong to the model are written in the context: they appear only where the model can be written, and the
    model only where all of them could be. A model that a protobuf message can't hold (2 GiB) gets its weights in
    `<name>.onnx.data` beside it; both files appear together.

    Args:
        model: not changed.
        path: the output.
        force: an existing output may be replaced, and with it the `<name>.onnx.data` that belongs to it.
        inputs: the model files that were read; neither they nor the files of their weights are ever written.

    Raises:
        OutputExistsError, InputError: as `atomic_path`; also when an input would be overwritten.
        ModelError: the checker refuses the result; nothing is written then.
    """
    inputs = list(inputs)
    if fits_one_file(model):
        _protect_inputs([path], inputs)
        with atomic_path(path, force=force) as temporary:
            _save(model, temporary)
            yield
        return
    data = external_data_path(path)
    _protect_inputs([data, path], inputs)
    if data.exists() and not (path.exists() and any(data.samefile(f) for f in _existing_data(path))):
        raise InputError(f"{data}: the weights would go here, but the file belongs to something else; move it away")
    with atomic_paths([data, path], force=force) as (_, temporary):
        _save(model, temporary)
        yield


def _protect_inputs(outputs: Iterable[Path], inputs: Sequence[Path]) -> None:
    """Refuses an output that is one of the inputs, or holds the weights of one."""
    sources = [file for source in inputs for file in (source, *external_data_files(source)) if file.exists()]
    for output in outputs:
        if output.exists() and any(output.samefile(source) for source in sources):
            raise InputError(f"{output}: is an input; the input is never written, name another output")


def _existing_data(path: Path) -> list[Path]:
    """The files that hold the weights of the model at `path` and are there."""
    return [file for file in external_data_files(path) if file.exists()]


def save_unchecked(model: onnx.ModelProto, path: Path) -> None:
    """Writes a model that need not be valid, as one whose outputs state no shape; for files that soon go again.

    Raises:
        ModelError: it can't be written.
    """
    try:
        if fits_one_file(model):
            onnx.save(model, path, format="protobuf")
        else:
            save_with_external_data(model, path)
    except (EncodeError, ValueError) as error:
        raise ModelError(f"the model can't be written ({first_line(error)})") from error


def _save(model: onnx.ModelProto, temporary: Path) -> None:
    """Writes a model that the full checker takes."""
    if fits_one_file(model):
        check_without_weights(model, temporary)
        save_unchecked(model, temporary)
    else:
        save_unchecked(model, temporary)
        check_model(temporary)


def import_graph(model: onnx.ModelProto) -> gs.Graph:
    """The graph of `model`, to edit. `export_model` needs the model itself again."""
    with G_LOGGER.suppress(G_LOGGER.ERROR):
        graph = gs.import_onnx(model)
        if not fits_one_file(model):
            for constant in graph.tensors().values():
                lazy = constant._values if isinstance(constant, gs.Constant) else None
                if isinstance(lazy, LazyValues) and file_of(lazy.tensor) is not None:
                    constant.values = FileValues(lazy.tensor)
        return graph


def export_model(
    graph: gs.Graph, source: onnx.ModelProto, metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """Turns an edited graph back into a model with the metadata of `source`.

    Args:
        graph: the edited graph.
        source: the model that the graph was imported from.
        metadata: entries of metadata_props to add or replace.
    """
    model = export_any_size(graph)
    # Before IR version 4 every weight must be listed among the inputs, which the graph no longer does.
    model.ir_version = max(model.ir_version, 4)
    model.domain = source.domain
    model.model_version = source.model_version
    model.doc_string = source.doc_string
    onnx.helper.set_model_props(model, read_metadata(source) | dict(metadata or {}))
    return model


def export_subgraph(
    graph: gs.Graph, nodes: Sequence[gs.Node], inputs: Iterable[Tensor], outputs: Iterable[Tensor]
) -> onnx.ModelProto:
    """A model of some nodes of a graph, between the given tensors.

    Its inputs and outputs state no shape, so that any batch fits.
    """
    part = gs.Graph(
        nodes=list(nodes),
        inputs=[gs.Variable(tensor.name, dtype=tensor.dtype) for tensor in inputs],
        outputs=[gs.Variable(tensor.name, dtype=tensor.dtype) for tensor in outputs],
        opset=graph.opset,
        import_domains=graph.import_domains,
        ir_version=graph.ir_version,
    )
    return export_any_size(part)


def read_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata_props of a model."""
    return {entry.key: entry.value for entry in model.metadata_props}
