"""The description of what can be run: a checkpoint, an ONNX file or an engine, and a module of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.model_file import import_graph, read_metadata, read_model
from vsfix.graph_passes.precision.precision import stated_precision
from vsfix.pipeline.backends.model_kind import ModelKind, model_kind
from vsfix.pipeline.backends.opening import checkpoint_file
from vsfix.pipeline.building.engine_sidecar import (
    EngineSidecar,
    describe_onnx_file,
    file_digest,
    onnx_digest,
    read_sidecar,
)
from vsfix.pipeline.data.calibration import fixed_batch_size, model_input_names, model_inputs, read_preprocessing
from vsfix.pipeline.data.fitting import ModelInput
from vsfix.pipeline.data.random_inputs import stated_shape
from vsfix.pipeline.inspection.preparation import repaired_batch_norms
from vsfix.pipeline.tensorrt.engine_layers import COMPUTING
from vsfix.pipeline.tensorrt.parsed_network import NetworkTensor
from vsfix.trainers.data.preprocessing import METADATA_KEY, Preprocessing

if TYPE_CHECKING:
    from torch import nn

ANOTHER_MODEL = "another model"  # the step between two files of which neither was made of the other
_CHECKPOINT_INPUT = "input"
_COARSEST_FIRST = {"FP8": "fp8", "INT8": "int8", "BF16": "bf16", "HALF": "fp16"}
_ENGINE_TYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "UINT8": "uint8"}
_TELLING = COMPUTING | {"QUANTIZE", "SCALE", "ACTIVATION", "ELEMENTWISE"}  # a CONSTANT may hold anything


@dataclass(frozen=True)
class ModelDescription:
    """The description of a model file.

    Attributes:
        path: the file.
        kind: checkpoint, onnx, engine or module.
        digest: SHA-256 of what it computes: of the file and those of its weights; of the ONNX file of an engine.
        input_names: of its inputs; none for a checkpoint, which has no names.
        input_shapes: of each input without the batch axis; None where the file does not say.
        preprocessing: of its images; None where it does not say.
        precision: that it computes in, as `--precision` names it.
        repaired: whether its statistics were repaired.
        backend: what runs it where the user names nothing.
        smallest_batch: that it takes.
        largest_batch: that it takes; None for any.
        sidecar: of an engine; else None.
        module: of PyTorch, where that is what it is; else None.
        name: what a result calls it; empty for its path.
        inputs: what it says of its inputs, for the data that it is fed with.
    """

    path: Path
    kind: ModelKind
    digest: str
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...] | None, ...]
    preprocessing: Preprocessing | None
    precision: str
    repaired: bool
    backend: str
    smallest_batch: int = 1
    largest_batch: int | None = None
    sidecar: EngineSidecar | None = None
    module: nn.Module | None = None
    name: str = ""
    inputs: tuple[ModelInput, ...] = ()

    @property
    def label(self) -> str:
        """The name of the model in results."""
        return self.name or str(self.path)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its inputs; the usual one for a checkpoint."""
        return self.input_names or (_CHECKPOINT_INPUT,)

    def inputs_called(self, names: Sequence[str]) -> tuple[ModelInput, ...]:
        """What it says of its inputs, by the names that they have elsewhere; that of a checkpoint has none."""
        if len(self.inputs) == 1 and len(names) == 1:
            return (replace(self.inputs[0], name=names[0]),)
        return self.inputs


def describe_model(path: Path) -> ModelDescription:
    """Reads what a file says of itself.

    Raises:
        InputError: it can't be read, or has no input.
    """
    kind = model_kind(path)
    if kind == "engine":
        return _describe_engine(path)
    return _describe_checkpoint(checkpoint_file(path)) if kind == "checkpoint" else _describe_onnx(path)


def describe_trusted_engine(path: Path, built_from: ModelDescription) -> ModelDescription:
    """An engine without a sidecar: it says nothing of itself, so its inputs and precision are those of another file.

    Args:
        path: of the engine.
        built_from: the file that it is said to be an engine of.

    Raises:
        ModelError: it can't be read.
    """
    return replace(
        built_from,
        path=path,
        kind="engine",
        digest=file_digest(path),
        backend="tensorrt",
        smallest_batch=1,
        largest_batch=None,
        sidecar=None,
    )


def describe_module(module: nn.Module, name: str, like: ModelDescription) -> ModelDescription:
    """A module of PyTorch, which says nothing of its inputs: they are called and shaped as those of a file.

    Args:
        module: on any device.
        name: what a result calls it.
        like: what it is compared with.
    """
    import torch

    from vsfix.trainers.export.module_signature import bare_module
    from vsfix.trainers.layers.repair_mark import repaired_parts

    module = bare_module(module)
    dtypes = {tensor.dtype for tensor in module.parameters()}
    halves = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    return ModelDescription(
        path=Path(name),
        kind="module",
        digest="",
        input_names=(),
        input_shapes=(None,) * len(like.names),
        preprocessing=None,
        precision=next((halves[dtype] for dtype in halves if dtype in dtypes), "fp32"),
        repaired=bool(repaired_parts(module)),
        backend="torch",
        module=module,
        name=name,
    )


def name_step(before: ModelDescription, after: ModelDescription) -> str:
    """The step from one file to the next: export, repair, cast, quantisation, runtime, or just another model."""
    if before.digest == after.digest or after.kind == "engine":
        return "runtime"
    if before.kind in ("checkpoint", "module"):
        return "export and repair" if after.repaired and not before.repaired else "export"
    if after.precision != before.precision:
        return "quantisation" if after.precision in ("int8", "fp8") else "cast"
    return "repair" if after.repaired and not before.repaired else ANOTHER_MODEL


def _describe_checkpoint(path: Path) -> ModelDescription:
    """A checkpoint of vsfix."""
    from vsfix.trainers.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    network = checkpoint.network
    shapes = ((network.in_channels, *network.image_size),)
    return ModelDescription(
        path=path,
        kind="checkpoint",
        digest=file_digest(path),
        input_names=(),
        input_shapes=shapes,
        preprocessing=checkpoint.preprocessing,
        precision="fp32",
        repaired=False,
        backend="torch",
        inputs=(ModelInput(_CHECKPOINT_INPUT, np.dtype(np.float32), shapes[0]),),
    )


def _describe_onnx(path: Path) -> ModelDescription:
    """An ONNX file."""
    model = read_model(path)
    names = tuple(model_input_names(model))
    if not names:
        raise InputError(f"{path}: the model has no input; there is nothing to compare on")
    precision = stated_precision(import_graph(model))
    return ModelDescription(
        path=path,
        kind="onnx",
        digest=onnx_digest(describe_onnx_file(path)),
        input_names=names,
        input_shapes=tuple(stated_shape(model, name) for name in names),
        preprocessing=read_preprocessing(model),
        precision=precision,
        repaired=bool(repaired_batch_norms(read_metadata(model))),
        backend="reference" if precision == "bf16" else "onnxruntime",  # whose CPU kernels know no bfloat16
        smallest_batch=fixed_batch_size(model) or 1,
        largest_batch=fixed_batch_size(model),
        inputs=tuple(model_inputs(model)),
    )


def _describe_engine(path: Path) -> ModelDescription:
    """An engine, by its sidecar."""
    sidecar = read_sidecar(path)
    ranges = [found for found in sidecar.profile.values() if found.maximum]
    preprocessing = sidecar.metadata.get(METADATA_KEY)
    return ModelDescription(
        path=path,
        kind="engine",
        digest=sidecar.digest,
        input_names=tuple(tensor.name for tensor in sidecar.inputs),
        input_shapes=tuple(_shape(tensor) for tensor in sidecar.inputs),
        preprocessing=None if preprocessing is None else Preprocessing.from_json(preprocessing),
        precision=_precision(sidecar),
        repaired=bool(repaired_batch_norms(sidecar.metadata)),
        backend=sidecar.runtime,
        smallest_batch=max((found.minimum[0] for found in ranges), default=1),
        largest_batch=min((found.maximum[0] for found in ranges), default=None),
        sidecar=sidecar,
        inputs=tuple(_engine_input(tensor) for tensor in sidecar.inputs),
    )


def _engine_input(tensor: NetworkTensor) -> ModelInput:
    """What an engine says of an input."""
    dtype = _ENGINE_TYPES.get(tensor.type)
    sides = tuple(max(side, 0) for side in tensor.shape[1:])  # -1 for a free one
    return ModelInput(tensor.name, None if dtype is None else np.dtype(dtype), sides if tensor.shape else None)


def _shape(tensor: NetworkTensor) -> tuple[int, ...] | None:
    """One input without its batch axis; None where a side is free or it does not hold float32."""
    sides = tensor.shape[1:]
    return sides if tensor.type == "FLOAT" and tensor.shape and all(side > 0 for side in sides) else None


def _precision(sidecar: EngineSidecar) -> str:
    """The coarsest type that an engine computes in, from the layers of its network."""
    kinds = {kind for layer, types in sidecar.network.items() if layer in _TELLING for kind in types}
    for kind, name in _COARSEST_FIRST.items():
        if kind in kinds:
            return name
    return "tf32" if sidecar.tensor_float else "fp32"
