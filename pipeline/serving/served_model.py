"""The description of a model for a server: its files, inputs, outputs and batch; read from ONNX files and engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import onnx

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.external_data import external_data_files
from vsfix.graph_passes.io.model_file import read_metadata, read_model
from vsfix.pipeline.building.engine_sidecar import EngineSidecar, describe_onnx_file, read_sidecar
from vsfix.pipeline.inspection.preparation import unrepaired_noise
from vsfix.pipeline.tensorrt.parsed_network import NetworkTensor

ONNX_FILE, PROVENANCE_FILE = "model.onnx", "vsfix.json"
_ENGINE_TYPES = {
    **{"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "BOOL": "BOOL", "UINT8": "UINT8"},
    **{"INT8": "INT8", "INT32": "INT32", "INT64": "INT64"},
}
_ONNX_TYPES = {
    **{"FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "DOUBLE": "FP64", "BOOL": "BOOL", "STRING": "STRING"},
    **{f"{sign}INT{bits}": f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True)
class ServedTensor:
    """An input or output.

    Attributes:
        name: in the model.
        type: FP32, INT64 and so on, as the inference protocol names them.
        shape: with the batch; -1 for a free side.
    """

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ServedModel:
    """A model that a server can run.

    Attributes:
        is_engine: whether it is one or several engines, or else an ONNX file.
        files: the files of a version by their names there.
        capabilities: for engines, the file for each compute capability.
        inputs: in the order of the model.
        outputs: the same.
        largest_batch: of one request; None for any, 0 where the first axis is no batch of 1 and more.
        usual_shapes: an ordinary shape for each input whose free sides are known; with the batch.
        metadata: what the ONNX file says about itself.
        provenance: what is known of each model file.
        warning: of an ONNX file, that it shows noise and was not repaired; `vsfix build` says so of engines.
    """

    is_engine: bool
    files: Mapping[str, Path]
    capabilities: Mapping[str, str]
    inputs: tuple[ServedTensor, ...]
    outputs: tuple[ServedTensor, ...]
    largest_batch: int | None
    usual_shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    provenance: Mapping[str, Mapping[str, Any]]
    warning: str = ""


def read_served_model(sources: Sequence[Path], compute_capability: str | None = None) -> ServedModel:
    """Reads an ONNX file, or engines of one network for different GPUs.

    Args:
        sources: one `.onnx` file, or engines with their sidecars.
        compute_capability: of the GPU of the engine, as `8.9`, where its sidecar does not say.

    Raises:
        InputError, ModelError: files that can't be served, or not together.
        BuildError: an engine that is not the one of its sidecar.
    """
    models = [path for path in sources if path.suffix == ".onnx"]
    if not models:
        return _read_engines([read_sidecar(path) for path in sources], compute_capability)
    if len(sources) > 1:
        raise InputError(
            f"{models[0]}: an ONNX file serves every GPU and is packaged alone; several engines go together"
        )
    if compute_capability is not None:
        raise InputError("compute capability: belongs to engines, an ONNX file has none; leave it out")
    return _read_onnx(models[0])


def _read_onnx(path: Path) -> ServedModel:
    """An ONNX file and the files of its weights."""
    model = read_model(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_onnx_tensor(path, value) for value in model.graph.input if value.name not in weights)
    outputs = tuple(_onnx_tensor(path, value) for value in model.graph.output)
    free = {tensor.name for tensor in inputs if _has_free_batch([tensor])}
    batches = {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input if value.name in free}
    files = {ONNX_FILE: path}
    for file in external_data_files(path):
        name = str(PurePosixPath(file.relative_to(path.parent)))
        if name in (ONNX_FILE, PROVENANCE_FILE):
            raise InputError(f"{path}: its weights stand in '{name}', a name that the repository needs; rename them")
        files[name] = file
    return ServedModel(
        is_engine=False,
        files=files,
        capabilities={},
        inputs=inputs,
        outputs=outputs,
        largest_batch=None if len(batches) == 1 and _has_free_batch((*inputs, *outputs)) else 0,
        usual_shapes={
            tensor.name: (1, *tensor.shape[1:]) if tensor.name in free else tensor.shape
            for tensor in inputs
            if -1 not in tensor.shape[1:]
        },
        metadata=read_metadata(model),
        provenance={ONNX_FILE: {"model": describe_onnx_file(path), "metadata": read_metadata(model)}},
        warning=unrepaired_noise(model),
    )


def _onnx_tensor(path: Path, value: onnx.ValueInfoProto) -> ServedTensor:
    """An input or output of an ONNX file."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise InputError(f"{path}: '{value.name}' is no tensor, and a server exchanges nothing else")
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
    shape = tuple(dim.dim_value if dim.dim_value > 0 else -1 for dim in tensor.shape.dim)
    return ServedTensor(value.name, _type(path, value.name, kind, _ONNX_TYPES), shape)


def _read_engines(sidecars: Sequence[EngineSidecar], given: str | None) -> ServedModel:
    """Engines of one network, each for its GPU."""
    first = sidecars[0]
    if given is not None and len(sidecars) > 1:
        raise InputError("compute capability: with several engines each sidecar must say its own; package one alone")
    capabilities: dict[str, EngineSidecar] = {}
    for sidecar in sidecars:
        _require_servable(sidecar)
        if (sidecar.inputs, sidecar.outputs) != (first.inputs, first.outputs):
            raise InputError(f"{sidecar.engine}: has other inputs or outputs than {first.engine}: not the same network")
        capability = _capability(sidecar, given)
        if capability in capabilities:
            raise InputError(f"{sidecar.engine}: is for {capability}, as {capabilities[capability].engine} is")
        capabilities[capability] = sidecar
    names = {capability: f"model.plan.sm{capability.replace('.', '')}" for capability in capabilities}
    return ServedModel(
        is_engine=True,
        files={names[capability]: sidecar.engine for capability, sidecar in capabilities.items()},
        capabilities=names,
        inputs=tuple(_engine_tensor(first.engine, tensor) for tensor in first.inputs),
        outputs=tuple(_engine_tensor(first.engine, tensor) for tensor in first.outputs),
        largest_batch=min(_largest_batch(sidecar) for sidecar in sidecars),
        usual_shapes={name: found.optimum for name, found in first.profile.items()},
        metadata=first.metadata,
        provenance={names[capability]: sidecar.document for capability, sidecar in capabilities.items()},
    )


def _require_servable(sidecar: EngineSidecar) -> None:
    """Refuses an engine that no backend of the server loads."""
    if sidecar.runtime != "tensorrt":
        raise InputError(
            f"{sidecar.engine}: is an engine of {sidecar.runtime}, which Triton has no backend for: its tensorrt "
            "backend loads plans of TensorRT only; package the ONNX file, or build with --runtime tensorrt"
        )


def _capability(sidecar: EngineSidecar, given: str | None) -> str:
    """The compute capability that an engine is for."""
    known = None if sidecar.gpu is None else _dotted(sidecar.gpu)
    if known is not None and given is not None and known != given:
        raise InputError(f"{sidecar.engine}: was built on a GPU of {known}, not {given}")
    found = known or given
    if found is None:
        raise InputError(
            f"{sidecar.engine}: its sidecar does not say for which GPU it is; pass --compute-capability 8.9 or another"
        )
    major, _, minor = found.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise InputError(f"compute capability '{found}': write it as 8.9")
    return found


def _dotted(name: str) -> str:
    """`sm89` as Triton writes it, `8.9`; the minor version has one digit."""
    return f"{name[2:-1]}.{name[-1]}"


def _engine_tensor(engine: Path, tensor: NetworkTensor) -> ServedTensor:
    """An input or output of an engine."""
    return ServedTensor(tensor.name, _type(engine, tensor.name, tensor.type, _ENGINE_TYPES), tensor.shape)


def _largest_batch(sidecar: EngineSidecar) -> int:
    """The largest batch of an engine that takes every batch from 1 on, else 0."""
    ranges = sidecar.profile.values()
    tensors = [ServedTensor(tensor.name, "", tensor.shape) for tensor in (*sidecar.inputs, *sidecar.outputs)]
    if not ranges or not _has_free_batch(tensors) or any(found.minimum[:1] != (1,) for found in ranges):
        return 0
    return min(found.maximum[0] for found in ranges)


def _has_free_batch(tensors: Sequence[ServedTensor]) -> bool:
    """Whether the first side of every tensor is free."""
    return all(tensor.shape[:1] == (-1,) for tensor in tensors)


def _type(path: Path, name: str, kind: str, types: Mapping[str, str]) -> str:
    """The type as the inference protocol names it."""
    if kind not in types:
        raise InputError(f"{path}: '{name}' holds {kind}, which a server does not exchange; cast it in the model")
    return types[kind]
