"""What a file that can be run says of itself: a checkpoint or an ONNX file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.external_data import external_data_files
from vsfix.graph_passes.model_file import import_graph, read_metadata, read_model
from vsfix.graph_passes.precision import stated_precision
from vsfix.trainers.preprocessing import Preprocessing

from .backends.opening import checkpoint_file, is_checkpoint
from .calibration import model_input_names, read_preprocessing
from .random_inputs import stated_shape

Kind = Literal["checkpoint", "onnx", "engine"]
REPAIR_KEY = "vsfix.repair"
_CHECKPOINT_INPUT = "input"
_BACKENDS = {"checkpoint": "torch", "onnx": "onnxruntime"}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class ModelDescription:
    """What is known of a model file.

    Attributes:
        path: the file.
        kind: checkpoint, onnx or engine.
        digest: SHA-256 of what it computes: of the file and those of its weights; of the ONNX file behind an engine.
        input_names: of its inputs; none for a checkpoint, which has no names.
        input_shapes: of each input without the batch axis; None where the file does not say.
        preprocessing: of its images; None where it does not say.
        precision: that it computes in, as `--precision` names it.
        repaired: whether its statistics were repaired.
        backend: what runs it where the user names nothing.
    """

    path: Path
    kind: Kind
    digest: str
    input_names: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...] | None, ...]
    preprocessing: Preprocessing | None
    precision: str
    repaired: bool
    backend: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its inputs; the usual one for a checkpoint."""
        return self.input_names or (_CHECKPOINT_INPUT,)


def describe_model(path: Path) -> ModelDescription:
    """Reads what a file says of itself.

    Raises:
        InputError: it can't be read, or has no input.
    """
    return _describe_checkpoint(checkpoint_file(path)) if is_checkpoint(path) else _describe_onnx(path)


def name_step(before: ModelDescription, after: ModelDescription) -> str:
    """What leads from one file to the next: export, repair, cast, quantisation, runtime, or just another model."""
    if before.digest == after.digest or after.kind == "engine":
        return "runtime"
    if before.kind == "checkpoint":
        return "export and repair" if after.repaired and not before.repaired else "export"
    if after.precision != before.precision:
        return "quantisation" if after.precision in ("int8", "fp8") else "cast"
    return "repair" if after.repaired and not before.repaired else "another model"


def _describe_checkpoint(path: Path) -> ModelDescription:
    """A checkpoint of vsfix."""
    from vsfix.trainers.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    network = checkpoint.network
    shapes = ((network.in_channels, *network.image_size),)
    return ModelDescription(
        path,
        "checkpoint",
        _digest([path]),
        (),
        shapes,
        checkpoint.preprocessing,
        "fp32",
        False,
        _BACKENDS["checkpoint"],
    )


def _describe_onnx(path: Path) -> ModelDescription:
    """An ONNX file."""
    model = read_model(path)
    names = tuple(model_input_names(model))
    if not names:
        raise InputError(f"{path}: the model has no input; there is nothing to compare on")
    return ModelDescription(
        path=path,
        kind="onnx",
        digest=_digest([path, *external_data_files(path)]),
        input_names=names,
        input_shapes=tuple(stated_shape(model, name) for name in names),
        preprocessing=read_preprocessing(model),
        precision=_precision(model),
        repaired=REPAIR_KEY in read_metadata(model),
        backend=_BACKENDS["onnx"],
    )


def _precision(model: onnx.ModelProto) -> str:
    """The coarsest type that the graph computes in."""
    return stated_precision(import_graph(model))


def _digest(paths: list[Path]) -> str:
    """SHA-256 over files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
