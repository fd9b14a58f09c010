"""The sidecar of an engine, read again: `ENGINE.json`, which says what the plan is and must belong to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsfix.graph_passes.errors import BuildError, InputError

from .backends.engine_file import sidecar_path
from .backends.parsed_network import NetworkTensor
from .backends.shape_profile import ShapeRange
from .console import SCHEMA_VERSION
from .file_description import file_digest
from .refit_form import RefitRecord, WeightRecord

_AGAIN = "build the engine again with `vsfix build`"


@dataclass(frozen=True)
class EngineSidecar:
    """What is known of an engine.

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
        refit: what a refit must know; None for an engine that can't be refitted.
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
    refit: RefitRecord | None


def read_sidecar(engine: Path) -> EngineSidecar:
    """Reads the sidecar of an engine and holds it against the plan.

    Raises:
        InputError: there is no engine or no sidecar, or an older vsfix wrote it.
        BuildError: the plan is not the one that the sidecar describes.
    """
    if not engine.is_file():
        raise InputError(f"{engine}: no such file")
    path = sidecar_path(engine)
    try:
        found = _sidecar(engine, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file, and an engine alone does not say what it is; keep both together, or {_AGAIN}"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read as a sidecar ({error}); {_AGAIN}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: says too little of the engine ({error}): another version of vsfix wrote it; {_AGAIN}"
        ) from error
    if file_digest(engine) != found.sha256:
        raise BuildError(
            f"{engine}: is not the plan that {path.name} describes (its SHA-256 is another one): it was changed or cut "
            f"short, or belongs to another sidecar; {_AGAIN}"
        )
    return found


def _sidecar(engine: Path, document: Mapping[str, Any]) -> EngineSidecar:
    """The document in types; whatever is missing or of another kind raises."""
    if document["schema_version"] != SCHEMA_VERSION:
        raise KeyError(f"schema_version {document['schema_version']}")
    refit = document["refit"]
    return EngineSidecar(
        engine=engine,
        document=document,
        runtime=str(document["runtime"]),
        version=str(document["version"]),
        sha256=str(document["plan"]["sha256"]),
        gpu=document["gpu"],
        inputs=tuple(_tensor(entry) for entry in document["inputs"]),
        outputs=tuple(_tensor(entry) for entry in document["outputs"]),
        profile={name: _range(entry) for name, entry in document["profile"].items()},
        metadata={str(key): str(value) for key, value in document["metadata"].items()},
        refit=None if refit is None else _refit(refit),
    )


def _tensor(entry: Mapping[str, Any]) -> NetworkTensor:
    return NetworkTensor(str(entry["name"]), str(entry["type"]), tuple(int(side) for side in entry["shape"]))


def _range(entry: Mapping[str, Any]) -> ShapeRange:
    return ShapeRange(*(tuple(int(side) for side in entry[key]) for key in ("minimum", "optimum", "maximum")))


def _refit(entry: Mapping[str, Any]) -> RefitRecord:
    weights = {
        name: WeightRecord(tuple(int(side) for side in weight["shape"]), str(weight["type"]), str(weight["sha256"]))
        for name, weight in entry["weights"].items()
    }
    return RefitRecord(str(entry["marked"]), str(entry["structure"]), weights)
