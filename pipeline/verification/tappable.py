"""From a model file to a graph whose inner tensors can be read on the backend that ran it, and two of them searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx

from vsfix.graph_passes.errors import InputError, VsfixError
from vsfix.graph_passes.io.model_file import read_model
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.pipeline.backends.opening import open_model
from vsfix.pipeline.backends.tensorrt_runner import open_built
from vsfix.pipeline.building.engine_sidecar import EngineSidecar
from vsfix.pipeline.comparison.layer_search import LayerSearch, TappableModel, search_layers

from .model_description import ModelDescription, describe_model
from .shared_inputs import shared_batch_size


def open_tappable(
    description: ModelDescription,
    backend: str,
    statistics: Mapping[str, Array] | None = None,
    *,
    input_name: str = "input",
    inputs: Batch | None = None,
) -> TappableModel:
    """The graph of a file.

    A checkpoint and a module are exported anew and their graphs run in ONNX Runtime, since torch gives tensors no
    names; an engine is built anew from the ONNX file that its sidecar names.

    Args:
        description: of the file.
        backend: what ran the file.
        statistics: running statistics instead of a checkpoint's own.
        input_name: what the input of a checkpoint is called, which itself has no name for it.
        inputs: samples for a module, which says nothing of what it takes.

    Raises:
        VsfixError: the file has no graph that can be read, or the backend is not here.
    """
    if description.kind in ("checkpoint", "module"):
        how = "exported anew" if description.kind == "checkpoint" else "exported"
        model = _export(description, statistics, input_name, inputs or {})
        return TappableModel(f"{description.label} ({how})", model, partial(open_model, "onnxruntime"))
    if description.sidecar is not None:
        return _open_engine(description, description.sidecar)
    if description.kind == "engine":
        raise InputError(f"{description.path}: has no sidecar, and so the graph that it was built from is not known")
    return TappableModel(str(description.path), read_model(description.path), partial(open_model, backend))


def _open_engine(description: ModelDescription, sidecar: EngineSidecar) -> TappableModel:
    """The graph that an engine was built from, built anew with whatever is tapped; its kernels may be others then."""
    places = (sidecar.model, description.path.parent / sidecar.model.name)  # as it was named, or beside the engine
    path = next((place for place in places if place.is_file()), sidecar.model)
    if not path.is_file() or describe_model(path).digest != description.digest:
        raise InputError(f"{path}, which {description.path} was built from, is not there any more or has changed")
    open_model = partial(
        open_built,
        runtime=sidecar.runtime,
        profile=sidecar.profile,
        tensor_float=sidecar.tensor_float,
    )
    return TappableModel(f"{description.path} (built anew from {path})", read_model(path), open_model)


def _export(
    description: ModelDescription, statistics: Mapping[str, Array] | None, input_name: str, inputs: Batch
) -> onnx.ModelProto:
    """The graph of a checkpoint or a module."""
    import torch

    from vsfix.pipeline.backends.torch_runner import with_statistics
    from vsfix.trainers.export.module_signature import BATCH, as_inputs, named_inputs
    from vsfix.trainers.export.onnx_export import convert_module
    from vsfix.trainers.training.checkpoint import load_checkpoint

    if description.module is None:
        module = load_checkpoint(description.path).build()
        (shape,) = description.input_shapes
        assert shape is not None
        example = as_inputs(torch.zeros(2, *shape), input_name)
    else:
        module = description.module
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
        example = named_inputs(module, tensors, [{0: BATCH}] * len(tensors))
    if statistics is not None:
        module = with_statistics(module, statistics)
    return convert_module(module, example)[0]


def search_files(
    sides: Sequence[tuple[ModelDescription, str, Mapping[str, Array] | None]],
    input_name: str,
    inputs: Batch,
    min_snr_db: float,
) -> LayerSearch:
    """Looks for the layers in which the second side diverges from the first; says why where that can't be done.

    A file that takes one batch size gets its samples as often as fill it.

    Args:
        sides: each a file, the backend that ran it, and running statistics instead of a checkpoint's own.
        input_name: what the input of a checkpoint is called.
        inputs: a few samples.
        min_snr_db: what counts as different, in dB.
    """
    samples = len(next(iter(inputs.values())))
    size = shared_batch_size(samples, [description for description, _, _ in sides])
    filled = {name: np.resize(array, (size, *array.shape[1:])) for name, array in inputs.items()}
    try:
        right, found = (open_tappable(*side, input_name=input_name, inputs=filled) for side in sides)
    except VsfixError as error:
        name = sides[0][0].path.name
        return LayerSearch(name, samples, (), None, None, f"they can't be searched: {error}")
    return search_layers(right, found, filled, min_snr_db)
