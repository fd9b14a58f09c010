"""The kind of a model, decided in one module: a checkpoint, an ONNX file or an engine, or what is no file: a module.

The suffix decides where it is a known one; else the sidecar that `vsfix build` writes beside an engine; else the first
bytes: a plan of TensorRT begins with a letter of its own and `trt`, a checkpoint is a zip archive. The rest is read as
ONNX, which has no mark of its own, and refused there where it is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vsfix.graph_passes.io.named_file import why_unreadable
from vsfix.pipeline.tensorrt.engine_file import is_plan, sidecar_path

ModelKind = Literal["checkpoint", "onnx", "engine", "module"]
_SUFFIXES: dict[str, ModelKind] = {
    ".pt": "checkpoint",
    ".pth": "checkpoint",
    ".onnx": "onnx",
    ".plan": "engine",
    ".engine": "engine",
    ".trt": "engine",
}
_ZIP = b"PK\x03\x04"


def model_kind(path: Path) -> ModelKind:
    """The kind of a model file; the folder of a training run stands for its checkpoint.

    A file that is not there is told by its name alone; whoever opens it says that it is missing.
    """
    if path.is_dir():
        return "checkpoint"
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    if sidecar_path(path).is_file():
        return "engine"
    return _kind_of_content(path)


def names_factory(source: object) -> bool:
    """Whether a source is the text `package.module:function` that makes a module, and no file of that name is there."""
    return isinstance(source, str) and ":" in source and not Path(source).exists()


def _kind_of_content(path: Path) -> ModelKind:
    """By the first bytes."""
    if why_unreadable(path) is not None:
        return "onnx"
    try:
        with path.open("rb") as file:
            head = file.read(len(_ZIP))
    except OSError:
        return "onnx"
    if is_plan(head):
        return "engine"
    return "checkpoint" if head == _ZIP else "onnx"
