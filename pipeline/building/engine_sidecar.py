"""The sidecar of an engine, read again: `ENGINE.json`, which says what the plan is and must belong to it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.external_data import external_data_files
from vsfix.graph_passes.io.named_file import why_unreadable
from vsfix.pipeline.host.console import SCHEMA_VERSION
from vsfix.pipeline.tensorrt.engine_file import read_document, reading_document, require_digest
from vsfix.pipeline.tensorrt.engine_layers import Shares
from vsfix.pipeline.tensorrt.parsed_network import NetworkTensor
from vsfix.pipeline.tensorrt.shape_profile import LARGEST_SIDE, ShapeRange

_CHUNK = 1 << 20


@dataclass(frozen=True)
class EngineSidecar:
    """The sidecar of an engine.

    Attributes:
        engine: the plan.
        document: the sidecar as it stands in the file.
        runtime: `tensorrt` or `tensorrt-rtx`.
        version: of the runtime.
        sha256: of the plan.
        gpu: the compute capability of the GPU that it was built on, as `sm89`; None where that could not be told.
        inputs: in the order of the network.
        outputs: the same.
        profile: the shapes of each input.
        metadata: what the ONNX file said about itself.
        model: where the ONNX file stood.
        digest: of the ONNX file and of the files of its weights, see `onnx_digest`.
        network: layers of the parsed network by kind and type.
        tensor_float: whether TF32 was allowed.
    """

    engine: Path
    document: Mapping[str, Any]
    runtime: str
    version: str
    sha256: str
    gpu: str | None
    inputs: tuple[NetworkTensor, ...]
    outputs: tuple[NetworkTensor, ...]
    profile: Mapping[str, ShapeRange]
    metadata: Mapping[str, str]
    model: Path
    digest: str
    network: Shares
    tensor_float: bool


def read_sidecar(engine: Path) -> EngineSidecar:
    """Reads the sidecar of an engine and holds it against the plan.

    Raises:
        InputError: there is no engine or no sidecar, or an older vsfix wrote it.
        BuildError: the plan is not the one that the sidecar describes.
    """
    if (reason := why_unreadable(engine)) is not None:
        raise InputError(f"{engine}: {reason}")
    document = read_document(engine)
    with reading_document(engine):
        found = _sidecar(engine, document)
    require_digest(engine, file_digest(engine), found.sha256)
    return found


def _sidecar(engine: Path, document: Mapping[str, Any]) -> EngineSidecar:
    """The document in types; whatever is missing or of another kind raises."""
    if document["schema_version"] != SCHEMA_VERSION:
        raise KeyError(f"schema_version {document['schema_version']}")
    model, proof = document["model"], document["precision"]
    return EngineSidecar(
        engine=engine,
        document=document,
        runtime=str(document["runtime"]),
        version=str(document["version"]),
        sha256=str(document["plan"]["sha256"]),
        gpu=_gpu(document["gpu"]),
        inputs=tuple(_tensor(entry) for entry in document["inputs"]),
        outputs=tuple(_tensor(entry) for entry in document["outputs"]),
        profile={name: _range(entry) for name, entry in document["profile"].items()},
        metadata={str(key): str(value) for key, value in document["metadata"].items()},
        model=Path(model["path"]),
        digest=onnx_digest(model),
        network={
            str(kind): {str(name): int(n) for name, n in types.items()} for kind, types in proof["network"].items()
        },
        tensor_float=bool(proof["tensor_float"]),
    )


def _tensor(entry: Mapping[str, Any]) -> NetworkTensor:
    return NetworkTensor(_text(entry["name"]), _text(entry["type"]), _sides(entry["shape"], least=-1))


def _range(entry: Mapping[str, Any]) -> ShapeRange:
    """The shapes of an input, from the smallest to the largest."""
    minimum, optimum, maximum = (_sides(entry[key], least=0) for key in ("minimum", "optimum", "maximum"))
    if not all(a <= b <= c for a, b, c in zip(minimum, optimum, maximum, strict=True)):
        raise ValueError(f"no shapes run from {minimum} over {optimum} to {maximum}")
    return ShapeRange(minimum, optimum, maximum)


def _sides(values: Any, least: int) -> tuple[int, ...]:
    """The sides of a tensor."""
    if not all(type(side) is int and least <= side <= LARGEST_SIDE for side in values):
        raise ValueError(f"{values!r} is no shape")
    return tuple(values)


def _text(value: Any) -> str:
    """A text that can be written."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode()
    return value


def _gpu(value: Any) -> str | None:
    """A compute capability as `sm89`."""
    if value is not None and not re.fullmatch(r"sm[0-9]{2,3}", _text(value)):
        raise ValueError(f"{value!r} is no GPU")
    return None if value is None else str(value)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def describe_onnx_file(path: Path) -> dict[str, Any]:
    """An ONNX file, with the files of its weights where it has such."""
    return _describe(path) | {"weights": [_describe(file) for file in external_data_files(path)]}


def onnx_digest(description: Mapping[str, Any]) -> str:
    """The SHA-256 of an ONNX file and of the files of its weights, as `describe_onnx_file` has them."""
    return " ".join(str(file["sha256"]) for file in (description, *description["weights"]))


def describe_plan(path: Path, plan: bytes) -> dict[str, Any]:
    """An engine that will stand at `path`."""
    return {"name": path.name, "sha256": hashlib.sha256(plan).hexdigest(), "bytes": len(plan)}


def _describe(path: Path) -> dict[str, Any]:
    return {"path": str(path), "sha256": file_digest(path), "bytes": path.stat().st_size}
