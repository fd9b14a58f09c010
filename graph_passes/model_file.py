"""ONNX files: read with every check, written whole or not at all, and turned into a graph that can be edited.

`onnx_graphsurgeon` carries a graph but not everything around it: a model's metadata_props, doc string, domain and
version are lost on its way back. `export_model` therefore takes the model that the graph came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx
import onnx.checker
import onnx.inliner
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx_graphsurgeon.logger import G_LOGGER

from .atomic_file import atomic_path
from .errors import ModelError
from .tensors import Tensor


def read_model(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file with its weights and checks it in full; local functions are inlined.

    Raises:
        ModelError: the file is missing, is no ONNX file, or does not pass the full checker.
    """
    try:
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
        model = onnx.load(path, format="protobuf")
    except (DecodeError, ValueError, OSError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: is not an ONNX file, or is cut short ({first_line(error)})") from error
    if not model.graph.node and not model.graph.output:
        raise ModelError(f"{path}: is not an ONNX file, or holds an empty graph")
    check_model(path)
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def check_model(path: Path) -> None:
    """Runs the full checker, shape inference included, on a file.

    Raises:
        ModelError: with the first line of what the checker says.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: the ONNX checker refuses it: {first_line(error)}") from error


def write_model(model: onnx.ModelProto, path: Path, *, force: bool) -> None:
    """Writes `model` and checks the file in full before it appears under its name.

    Raises:
        OutputExistsError, InputError: see `atomic_path`.
        ModelError: the checker refuses the result; nothing is written then.
    """
    with atomic_path(path, force=force) as temporary:
        onnx.save(model, temporary)
        check_model(temporary)


def import_graph(model: onnx.ModelProto) -> gs.Graph:
    """The graph of `model`, to edit. The model itself must be kept for `export_model`."""
    with G_LOGGER.suppress(G_LOGGER.ERROR):
        return gs.import_onnx(model)


def export_model(
    graph: gs.Graph, source: onnx.ModelProto, metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """Turns an edited graph back into a model that keeps what `source` says about itself.

    Args:
        graph: the edited graph.
        source: the model that the graph was imported from.
        metadata: entries of metadata_props to add or replace.
    """
    with G_LOGGER.suppress(G_LOGGER.ERROR):
        model = gs.export_onnx(graph, do_type_check=False)
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
    with G_LOGGER.suppress(G_LOGGER.ERROR):
        return gs.export_onnx(part, do_type_check=False)


def read_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata_props of a model."""
    return {entry.key: entry.value for entry in model.metadata_props}


def first_line(error: BaseException) -> str:
    """The first line with text in it of an error's message, or its class where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
