"""Packaging for `vsfix package`: a model or engines as a folder of a Triton model repository, whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsfix.graph_passes.errors import InputError, OutputExistsError
from vsfix.graph_passes.io.atomic_file import atomic_folder, atomic_path
from vsfix.graph_passes.progress import stage
from vsfix.pipeline.host.console import json_text
from vsfix.pipeline.host.environment import describe_environment
from vsfix.pipeline.host.output_file import require_output
from vsfix.pipeline.tensorrt.engine_file import sidecar_path
from vsfix.trainers.data.preprocessing import METADATA_KEY, Preprocessing

from .kserve import inference_service
from .served_model import PROVENANCE_FILE, ServedModel, read_served_model
from .triton_config import DEVICES, Batching, TritonConfig

LARGEST_BATCH = 64  # of an ONNX file with a free batch, which itself has no limit
CONFIG_FILE, LABELS_FILE = "config.pbtxt", "labels.txt"


@dataclass(frozen=True)
class PackageConfig:
    """How to package.

    Attributes:
        name: of the model; None for the name of the first file.
        version: of the model, the name of its folder.
        largest_batch: the most samples in a batch; None for what the model allows.
        delay: how long a request waits for others, in microseconds.
        device: `gpu`, `cpu` or `auto`; None for `gpu` with engines and `auto` with an ONNX file.
        compute_capability: of the GPU of an engine whose sidecar does not say.
        storage_uri: where KServe will find the repository; None where no InferenceService is wanted.

    Raises:
        InputError: a value that there is not.
    """

    name: str | None = None
    version: int = 1
    largest_batch: int | None = None
    delay: int = 0
    device: str | None = None
    compute_capability: str | None = None
    storage_uri: str | None = None

    def __post_init__(self) -> None:
        if self.version < 1:
            raise InputError(f"version {self.version}: must be 1 or more")
        if self.largest_batch is not None and self.largest_batch < 0:
            raise InputError(f"max batch size {self.largest_batch}: must not be negative")
        if self.delay < 0:
            raise InputError(f"queue delay {self.delay}: must not be negative")
        if self.device is not None and self.device not in DEVICES:
            raise InputError(f"device '{self.device}': unknown; there are {', '.join(DEVICES)}")


@dataclass(frozen=True)
class Package:
    """The files that were written.

    Attributes:
        folder: of the model, in the repository.
        files: in it, relative.
        config: the content of `config.pbtxt`, as an object.
        service: the file of the InferenceService; None where none was wanted.
        notes: what was left out, and why.
        warning: of an ONNX file, that it shows noise and was not repaired; else empty.
    """

    folder: Path
    files: tuple[str, ...]
    config: TritonConfig
    service: Path | None
    notes: tuple[str, ...]
    warning: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "folder": self.folder,
            "files": self.files,
            "backend": self.config.backend,
            "max_batch_size": self.config.batching.largest,
            "compute_capabilities": dict(self.config.model.capabilities),
            "service": self.service,
            "notes": self.notes,
            "warning": self.warning,
        }


@stage("package")
def package(
    sources: Sequence[Path],
    repository: Path,
    config: PackageConfig,
    *,
    service: Path | None = None,
    force: bool = False,
) -> Package:
    """Writes `<repository>/<name>`: configuration, class names, the files of one version, and what is known of them.

    Args:
        sources: one `.onnx` file, or engines of one network with their sidecars; never written.
        repository: made where it is missing; other models in it stay.
        config: how to package.
        service: the YAML of an InferenceService of KServe; None for none.
        force: an existing folder of that model, and an existing service, may be replaced.

    Raises:
        InputError, ModelError, OutputExistsError: files or options that can't be used as they are.
        BuildError: an engine that is not the one of its sidecar.
    """
    name = _model_name(sources, config)
    folder = repository / name
    _require_target(folder, repository, sources, force=force)
    model = read_served_model(sources, config.compute_capability)
    names = _class_names(model)
    labelled = [output.name for output in model.outputs if names and output.shape[-1:] == (len(names),)]
    triton = TritonConfig(
        name, model, _batching(model, config), _device(model, config.device), dict.fromkeys(labelled, LABELS_FILE)
    )
    text = _service_text(triton, config, service)
    if service is not None:
        require_output(service, force=force, inputs=[file for path in sources for file in (path, sidecar_path(path))])
    with atomic_folder(folder, force=force, scratch=_scratch(repository)) as new:
        files = _fill(new, triton, names if labelled else (), config.version)
    if service is not None:
        with atomic_path(service, force=force) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return Package(folder, files, triton, service, _notes(triton, names), model.warning)


def _model_name(sources: Sequence[Path], config: PackageConfig) -> str:
    """The name that was asked for, or that of the first file."""
    name = sources[0].stem if config.name is None else config.name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}", name):
        raise InputError(
            f"name '{name}': up to 255 letters, digits, '_', '-' and '.' make the name of a model; pass --name"
        )
    return name


def _require_target(folder: Path, repository: Path, sources: Sequence[Path], *, force: bool) -> None:
    """Fails early where the folder can't be written, and never lets --force delete what is no model."""
    if not repository.resolve().parent.is_dir():
        raise InputError(f"{repository}: the folder {repository.resolve().parent} does not exist; create it first")
    if repository.exists() and not repository.is_dir():
        raise InputError(f"{repository}: is a file; name the folder of a model repository")
    inside = [path for path in sources if path.resolve().is_relative_to(folder.resolve())]
    if inside:
        raise InputError(f"{inside[0]}: is an input; the input is never written, name another repository or --name")
    if not folder.exists():
        return
    if not force:
        raise OutputExistsError(f"{folder}: exists already; pass --force to replace it with every version in it")
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder}: is no model of a Triton repository, and is not replaced; pass another --name")


def _scratch(repository: Path) -> Path:
    """Where a folder is filled: beside the repository, where a server that polls it does not look, if that can be.

    A repository that is a mount of its own has another file system beside it, and often one that can't be written.
    """
    parent = repository.resolve().parent
    if not repository.exists():
        return parent
    beside = os.access(parent, os.W_OK) and parent.stat().st_dev == repository.stat().st_dev
    return parent if beside else repository


def _class_names(model: ServedModel) -> tuple[str, ...]:
    """The names of the classes, where the model says them."""
    described = model.metadata.get(METADATA_KEY)
    names = () if described is None else Preprocessing.from_json(described).class_names
    broken = next((name for name in names if len(name.splitlines()) > 1), None)
    if broken is not None:
        raise InputError(f"class name {broken!r}: must stand in one line")
    return names


def _batching(model: ServedModel, config: PackageConfig) -> Batching:
    """How requests become batches, held against what the model allows."""
    allowed, asked = model.largest_batch, config.largest_batch
    if asked and allowed is not None and asked > allowed:
        what = f"a batch of {allowed} at most" if allowed else "no batch of every size from 1 on"
        raise InputError(f"max batch size {asked}: the model takes {what}; pass --max-batch-size {allowed}")
    largest = (LARGEST_BATCH if allowed is None else allowed) if asked is None else asked
    if config.delay and largest < 2:
        raise InputError("queue delay: there is nothing to batch, leave it out")
    return Batching(largest, config.delay)


def _device(model: ServedModel, asked: str | None) -> str:
    """Where the model runs; an engine runs on a GPU only."""
    if model.is_engine and asked not in (None, "gpu"):
        raise InputError(f"device '{asked}': an engine runs on a GPU; package the ONNX file for a CPU")
    return asked or ("gpu" if model.is_engine else "auto")


def _service_text(triton: TritonConfig, config: PackageConfig, service: Path | None) -> str:
    """The InferenceService, made before anything is written; empty where none is wanted."""
    if (service is None) != (config.storage_uri is None):
        raise InputError("--kserve and --storage-uri go together: KServe must be told where the repository will stand")
    if config.storage_uri is None:
        return ""
    return inference_service(triton.name, config.storage_uri, gpu=triton.device == "gpu")


def _fill(folder: Path, triton: TritonConfig, class_names: Sequence[str], version: int) -> tuple[str, ...]:
    """Puts everything into the new folder; returns the files, relative to it."""
    (folder / CONFIG_FILE).write_text(triton.to_text(), encoding="utf-8")
    if class_names:
        (folder / LABELS_FILE).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    for name, source in triton.model.files.items():
        target = folder / str(version) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    provenance = {"name": triton.name, "files": triton.model.provenance, "environment": describe_environment()}
    (folder / str(version) / PROVENANCE_FILE).write_text(json_text(provenance) + "\n", encoding="utf-8")
    return tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))


def _notes(triton: TritonConfig, class_names: Sequence[str]) -> tuple[str, ...]:
    """The files that were left out, and why."""
    notes = []
    if not triton.is_warmed_up:
        notes.append("warm-up: an input has sides that the file does not fix")
    if class_names and not triton.label_files:
        notes.append(f"class names: no output has {len(class_names)} numbers on its last axis")
    return tuple(notes)
