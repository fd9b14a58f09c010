"""The form in which a model is built into a refittable engine, and in which it gives its weights to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm import is_batch_norm
from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.graph_pass import PassPipeline, PassResult
from vsfix.graph_passes.graph_tree import GraphTree
from vsfix.graph_passes.inference import Array
from vsfix.graph_passes.model_file import export_model, import_graph, write_model
from vsfix.graph_passes.nodes import name_of
from vsfix.graph_passes.refittable_weights import quantized_node, refit_passes, refittable_weights
from vsfix.graph_passes.structure_digest import initializer_values, structure_digest, values_digest

from .backends.parsed_network import ParsedNetwork
from .backends.tensorrt_library import TensorRt


@dataclass(frozen=True, eq=False)
class RefitForm:
    """A model in which every BatchNorm has become weights that a runtime knows by name.

    Attributes:
        model: without BatchNorms and noise markers.
        weights: the weights that an engine of it can be given anew, by name.
        structure: the digest of everything but the values of those weights.
    """

    model: onnx.ModelProto
    weights: Mapping[str, Array]
    structure: str


@dataclass(frozen=True)
class WeightRecord:
    """A weight that an engine can be given anew: its shape, its type, and the SHA-256 of what the engine holds now."""

    shape: tuple[int, ...]
    type: str
    sha256: str


@dataclass(frozen=True)
class RefitRecord:
    """What a refit must know of an engine; part of its sidecar.

    Attributes:
        marked: `individual` where exactly `weights` can be given anew, `all` where the version knows all or none.
        structure: the digest of everything but the values of the weights.
        weights: by name.
    """

    marked: str
    structure: str
    weights: Mapping[str, WeightRecord]


def take_refit_form(path: Path, model: onnx.ModelProto) -> RefitForm:
    """Brings a model into this form; the input is not changed.

    Args:
        path: where it was read, for messages.
        model: as it was read; its BatchNorms may be there, or folded already.

    Raises:
        InputError: a quantised model, a BatchNorm that can't become weights, or no weights at all.
    """
    graph = import_graph(model)
    quantized = quantized_node(graph)
    if quantized is not None:
        raise InputError(
            f"{path}: '{quantized}' quantises, and the scales of a quantised engine belong to the weights that it was "
            "built with, so that it can't be refitted; build it anew"
        )
    done = PassPipeline(refit_passes())(graph)
    _require_no_batch_norm(path, graph, done)
    names = refittable_weights(graph)
    form = export_model(graph, model)
    weights = initializer_values(form, names)
    if not weights:
        raise InputError(f"{path}: has no linear layer with constant weights: there is nothing to refit")
    return RefitForm(form, weights, structure_digest(form, weights))


def parse_refit_form(library: TensorRt, path: Path, form: RefitForm) -> ParsedNetwork:
    """Parses a model in this form; TensorRT reads files, so it is one for that long.

    Args:
        library: the parser's.
        path: of the model that it was made from, for its name.
        form: what is parsed.

    Raises:
        See `TensorRt.parse`.
    """
    with TemporaryDirectory(prefix="vsfix-") as folder:
        file = Path(folder, path.name)
        write_model(form.model, file, force=False)
        return library.parse(file, form.model)


def record_refit(form: RefitForm, marked: str) -> RefitRecord:
    """What the sidecar says of an engine that holds the weights of `form`.

    Args:
        form: the model in the form in which it was built or refitted.
        marked: `individual` or `all`.
    """
    weights = {
        name: WeightRecord(tuple(values.shape), values.dtype.name, values_digest(values))
        for name, values in form.weights.items()
    }
    return RefitRecord(marked, form.structure, weights)


def _require_no_batch_norm(path: Path, graph: gs.Graph, done: PassResult) -> None:
    """Refuses a BatchNorm that is left: a runtime knows its statistics by no name."""
    left = next((node for node in GraphTree(graph).nodes() if is_batch_norm(node)), None)
    if left is not None:
        reason = f": {done.kept[-1].reason}" if done.kept else ""
        raise InputError(
            f"{path}: BatchNorm '{name_of(left)}' can't become weights{reason}; an engine of this "
            "model can't be refitted, build it anew"
        )
