"""Files as a sidecar names them: by path, SHA-256 and size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vsfix.graph_passes.io.external_data import external_data_files

_CHUNK = 1 << 20


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
