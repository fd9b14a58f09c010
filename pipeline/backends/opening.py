"""From the name of a backend and a model file to a runner.

torch               a vsfix checkpoint
onnxruntime         an ONNX file, on the CPU
onnxruntime-cuda    an ONNX file, on an NVIDIA GPU
reference           an ONNX file, in onnx's own evaluator
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from vsfix.graph_passes.errors import InputError, MissingComponentError
from vsfix.graph_passes.inference import Array, Runner
from vsfix.graph_passes.model_file import read_model

from .onnxruntime_runner import CPU, CUDA, OnnxRuntimeRunner

if TYPE_CHECKING:
    from vsfix.trainers.checkpoint import Checkpoint

BACKENDS = ("torch", "onnxruntime", "onnxruntime-cuda", "reference")
_PROVIDERS = {"onnxruntime": CPU, "onnxruntime-cuda": CUDA}
_NOT_YET = ("torch-compile", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx")
_CHECKPOINT_SUFFIXES = (".pt", ".pth")


def open_runner(backend: str, model: Path, *, input_name: str = "input") -> Runner:
    """Opens a model file in a backend.

    Args:
        backend: one of `BACKENDS`.
        model: a vsfix checkpoint (or the folder that `vsfix train` made) for `torch`, an ONNX file for the others.
        input_name: what the input of a checkpoint is called, which itself has no name for it.

    Raises:
        InputError: an unknown backend, or one that does not run this kind of file.
        ModelError: the file can't be read, or the backend can't run it.
        MissingComponentError: the backend or its device is not here.
    """
    if backend in _NOT_YET:
        raise MissingComponentError(
            f"backend '{backend}': is not part of this release; there are {', '.join(BACKENDS)}"
        )
    if backend not in BACKENDS:
        raise InputError(f"backend '{backend}': unknown; there are {', '.join(BACKENDS)}")
    if backend == "torch" and not is_checkpoint(model):
        raise InputError(f"{model}: the torch backend runs a checkpoint (.pt); run an ONNX file with onnxruntime")
    if backend != "torch" and is_checkpoint(model):
        raise InputError(f"{model}: a checkpoint runs with --backend torch; for {backend} export it first")
    if backend == "torch":
        from vsfix.trainers.checkpoint import load_checkpoint

        return open_checkpoint(load_checkpoint(checkpoint_file(model)), input_name=input_name)
    return open_model(backend, read_model(model))


def open_model(backend: str, model: onnx.ModelProto) -> Runner:
    """Opens a graph in a backend that runs ONNX.

    Raises:
        InputError: a backend that runs no ONNX.
        ModelError, MissingComponentError: see `open_runner`.
    """
    if backend == "reference":
        from .reference_runner import ReferenceRunner

        return ReferenceRunner(model)
    if backend not in _PROVIDERS:
        raise InputError(f"backend '{backend}': runs no ONNX graph; those that do: reference, {', '.join(_PROVIDERS)}")
    return OnnxRuntimeRunner(model, provider=_PROVIDERS[backend])


def open_checkpoint(
    checkpoint: Checkpoint, *, input_name: str = "input", statistics: Mapping[str, Array] | None = None
) -> Runner:
    """Opens a checkpoint in torch.

    Args:
        checkpoint: what to run.
        input_name: what its input is called.
        statistics: running statistics in the place of its own, by their keys in the state_dict.

    Raises:
        ModelError: the weights don't belong to the network.
        InputError: the statistics don't belong to the network.
    """
    from .torch_runner import TorchRunner, with_statistics

    module = checkpoint.build()
    if statistics is not None:
        module = with_statistics(module, statistics)
    network = checkpoint.network
    return TorchRunner(module, input_name=input_name, input_shape=(network.in_channels, *network.image_size))


def is_checkpoint(path: Path) -> bool:
    """Whether a path is meant as a checkpoint: by its suffix, or as the folder of a training run."""
    return path.suffix in _CHECKPOINT_SUFFIXES or path.is_dir()


def checkpoint_file(path: Path) -> Path:
    """The checkpoint itself, where the folder of a training run was named."""
    return path / "checkpoint.pt" if path.is_dir() else path
