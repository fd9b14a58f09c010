"""From the name of a backend and a model file to a runner.

torch                     a vsfix checkpoint
torch-compile             the same, through torch.compile
onnxruntime               an ONNX file, on the CPU
onnxruntime-cuda          an ONNX file, on an NVIDIA GPU
onnxruntime-tensorrt      the same, through ONNX Runtime's TensorRT provider
onnxruntime-tensorrt-rtx  the same, through NVIDIA's plugin for ONNX Runtime
tensorrt, tensorrt-rtx    an engine that `vsfix build` made, on an NVIDIA GPU
reference                 an ONNX file, in onnx's own evaluator
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.model_file import read_model
from vsfix.graph_passes.ir.runtime import Array, Runner

from .execution_provider import CPU, CUDA, TENSORRT
from .feeds import InputSpec
from .model_kind import ModelKind, model_kind
from .onnxruntime_runner import OnnxRuntimeRunner
from .plugin_provider import TENSORRT_RTX

if TYPE_CHECKING:
    from torch import nn

    from vsfix.trainers.training.checkpoint import Checkpoint

_KINDS: Mapping[str, ModelKind] = {
    "torch": "checkpoint",
    "torch-compile": "checkpoint",
    "onnxruntime": "onnx",
    "onnxruntime-cuda": "onnx",
    "onnxruntime-tensorrt": "onnx",
    "onnxruntime-tensorrt-rtx": "onnx",
    "tensorrt": "engine",
    "tensorrt-rtx": "engine",
    "reference": "onnx",
}
BACKENDS = tuple(_KINDS)
_PROVIDERS = {
    "onnxruntime": CPU,
    "onnxruntime-cuda": CUDA,
    "onnxruntime-tensorrt": TENSORRT,
    "onnxruntime-tensorrt-rtx": TENSORRT_RTX,
}


def runs_kind(backend: str, kind: ModelKind) -> bool:
    """Whether a backend, one of `BACKENDS`, runs this kind of file."""
    return _KINDS[backend] == kind


def open_runner(backend: str, model: Path, *, input_name: str = "input", trust: bool = False) -> Runner:
    """Opens a model file in a backend.

    Args:
        backend: one of `BACKENDS`.
        model: a file of the kind that the backend runs; for a checkpoint also the folder that `vsfix train` made.
        input_name: what the input of a checkpoint is called, which itself has no name for it.
        trust: load an engine without a sidecar as well: an engine is code that runs here.

    Raises:
        InputError: an unknown backend, or one that does not run this kind of file.
        ModelError: the file can't be read, or the backend can't run it.
        MissingComponentError: the backend or its device is not here.
        BuildError: the engine is corrupt, or one of another version or for another GPU.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend '{backend}': unknown; there are {', '.join(BACKENDS)}")
    _require_kind(model, backend)
    if _KINDS[backend] == "checkpoint":
        from vsfix.trainers.training.checkpoint import load_checkpoint

        compiled = backend == "torch-compile"
        return open_checkpoint(load_checkpoint(checkpoint_file(model)), input_name=input_name, compiled=compiled)
    if _KINDS[backend] == "engine":
        from .tensorrt_runner import open_engine

        return open_engine(model, backend, trust=trust)
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


def _require_kind(model: Path, backend: str) -> None:
    """Refuses a file of another kind than the backend runs, and says what it needs."""
    kind, wanted = model_kind(model), _KINDS[backend]
    if kind == wanted:
        return
    if kind == "checkpoint":
        remedy = "export it first" if wanted == "onnx" else "export it and build an engine of it first"
        raise InputError(f"{model}: a checkpoint runs with --backend torch or torch-compile; for {backend} {remedy}")
    if wanted == "engine":
        raise InputError(
            f"{model}: {backend} runs an engine; build one first with `vsfix build {model} --runtime {backend}`"
        )
    runs = "a checkpoint (.pt)" if wanted == "checkpoint" else "an ONNX file"
    where = "an engine with tensorrt or tensorrt-rtx" if kind == "engine" else "an ONNX file with onnxruntime"
    raise InputError(f"{model}: the {backend} backend runs {runs}; run {where}")


def open_checkpoint(
    checkpoint: Checkpoint,
    *,
    input_name: str = "input",
    statistics: Mapping[str, Array] | None = None,
    compiled: bool = False,
) -> Runner:
    """Opens a checkpoint in torch.

    Args:
        checkpoint: what to run.
        input_name: what its input is called.
        statistics: running statistics instead of its own, by their keys in the state_dict.
        compiled: run it through torch.compile.

    Raises:
        ModelError: the weights don't belong to the network.
        InputError: the statistics don't belong to the network.
    """
    from .torch_runner import TorchRunner, with_statistics

    module = checkpoint.build()
    if statistics is not None:
        module = with_statistics(module, statistics)
    network = checkpoint.network
    shape = (network.in_channels, *network.image_size)
    return TorchRunner(module, input_name=input_name, input_shape=shape, compiled=compiled)


def open_module(
    module: nn.Module,
    input_names: Sequence[str],
    *,
    statistics: Mapping[str, Array] | None = None,
    compiled: bool = False,
) -> Runner:
    """Opens a module of PyTorch on the device where it is.

    Args:
        module: what to run.
        input_names: what its inputs are called: the arguments of its forward, or names in their order.
        statistics: running statistics instead of its own, by their keys in the state_dict.
        compiled: run it through torch.compile.

    Raises:
        InputError: the inputs or the statistics don't belong to the module.
    """
    from .torch_runner import TorchRunner, with_statistics

    if statistics is not None:
        module = with_statistics(module, statistics)
    device = next((str(tensor.device) for tensor in (*module.parameters(), *module.buffers())), "cpu")
    specs = [InputSpec(name, None, None) for name in input_names]
    return TorchRunner(module, inputs=specs, device=device, compiled=compiled)


def checkpoint_file(path: Path) -> Path:
    """The checkpoint itself, where the folder of a training run was named."""
    return path / "checkpoint.pt" if path.is_dir() else path
