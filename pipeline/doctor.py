"""Which backends work on this machine. Each is tried, not just looked for; a number that is wrong is found too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx
import onnx.parser

from vsfix.graph_passes.errors import VsfixError
from vsfix.graph_passes.inference import Array, Runner
from vsfix.graph_passes.model_file import first_line

from .backends.onnxruntime_runner import CPU, CUDA, OnnxRuntimeRunner, install_line
from .backends.reference_runner import ReferenceRunner
from .backends.shape_profile import ShapeOptions, resolve_profile
from .backends.tensorrt_library import CURRENT, INSTALL_LINES, RUNTIMES, BuildOptions, open_library

TENSORRT = "TensorrtExecutionProvider"
_MODEL = """<ir_version: 8, opset_import: ["" : 13]>
trial (float[N, 3] input) => (float[N, 2] logits) <float[3, 2] weight = {1, -1, 2, 0.5, -0.25, 4}> {
    product = MatMul (input, weight)
    logits = Relu (product)
}"""
_WEIGHT = np.array([[1, -1], [2, 0.5], [-0.25, 4]], dtype=np.float32)
_INPUT = np.array([[1, 2, 3], [-1, 0.5, 0], [2, -2, 8]], dtype=np.float32)
_TRAIN_LINE = "pip install 'vsfix[train]'"
_CUDA_TORCH_LINE = "install a CUDA build of torch: https://pytorch.org/get-started/locally"


@dataclass(frozen=True)
class BackendCheck:
    """What became of one backend.

    Attributes:
        name: as `--backend` would take it, or `--runtime` of `vsfix build`.
        status: PASS it ran and its numbers are right, or it built an engine; SKIP it is not here; FAIL it is here and
            does not work.
        version: of the package, empty where there is none.
        reason: why it does not work; empty where it does.
        remedy: the line that installs it; empty where it works.
    """

    name: str
    status: Literal["PASS", "SKIP", "FAIL"]
    version: str
    reason: str = ""
    remedy: str = ""


def check_backends() -> tuple[BackendCheck, ...]:
    """Tries every backend on a small model, and builds an engine of it with each TensorRT."""
    return (
        _check_torch("torch", "cpu", _TRAIN_LINE),
        _check_torch("torch (CUDA)", "cuda", _CUDA_TORCH_LINE),
        _check_onnxruntime("onnxruntime", CPU),
        _check_onnxruntime("onnxruntime-cuda", CUDA),
        _check_onnxruntime("onnxruntime-tensorrt", TENSORRT),
        *(_check_builder(runtime) for runtime in RUNTIMES),
        _try("reference", version("onnx"), lambda: ReferenceRunner(trial_model()), "pip install onnx"),
    )


def can_infer(checks: tuple[BackendCheck, ...]) -> bool:
    """Whether any real runtime works: the reference evaluator is too slow to count, and TensorRT only builds here."""
    return any(check.status == "PASS" for check in checks if check.name not in ("reference", *RUNTIMES))


def trial_model() -> onnx.ModelProto:
    """The small model: a product and a ReLU, (N, 3) -> (N, 2)."""
    return onnx.parser.parse_model(_MODEL)


def _try(name: str, found: str, open_trial: Callable[[], Runner], remedy: str) -> BackendCheck:
    """Runs the small model and compares with numpy."""
    try:
        with open_trial() as runner:
            (output,) = runner.run({"input": _INPUT}).values()
    except VsfixError as error:
        missing = error.exit_code == 3
        return BackendCheck(name, "SKIP" if missing else "FAIL", found, _without_advice(str(error)), remedy)
    except Exception as error:  # a broken installation may raise anything, and the doctor must go on
        return BackendCheck(name, "FAIL", found, f"{type(error).__name__}: {first_line(error)}", remedy)
    return _judge(name, found, output, remedy)


def _judge(name: str, found: str, output: Array, remedy: str) -> BackendCheck:
    """The numbers are small and exact in float32, so any difference is a defect."""
    if np.array_equal(output, np.maximum(_INPUT @ _WEIGHT, 0)):
        return BackendCheck(name, "PASS", found)
    return BackendCheck(name, "FAIL", found, "runs, but computes wrong numbers", remedy)


def _check_torch(name: str, device: str, remedy: str) -> BackendCheck:
    found = _version("torch")
    if not found:
        return BackendCheck(name, "SKIP", "", "torch is not installed", _TRAIN_LINE)

    def open_trial() -> Runner:
        import torch

        from .backends.torch_runner import TorchRunner

        linear = torch.nn.Linear(3, 2, bias=False)
        linear.load_state_dict({"weight": torch.from_numpy(_WEIGHT.T.copy())})
        return TorchRunner(torch.nn.Sequential(linear, torch.nn.ReLU()), device=device)

    return _try(name, found, open_trial, remedy)


def _check_onnxruntime(name: str, provider: str) -> BackendCheck:
    found = _version("onnxruntime", "onnxruntime-gpu")
    remedy = install_line(provider)
    if not found:
        return BackendCheck(name, "SKIP", "", "onnxruntime is not installed", remedy)
    return _try(name, found, lambda: OnnxRuntimeRunner(trial_model(), provider=provider), remedy)


def _check_builder(runtime: str) -> BackendCheck:
    """TensorRT: it works where it builds an engine of the small model, for a GPU here or for one that is named."""
    remedy = INSTALL_LINES[runtime]
    found = ""
    try:
        library = open_library(runtime)
        found = library.version
        with TemporaryDirectory() as folder:
            path = Path(folder, "trial.onnx")
            onnx.save(trial_model(), path)
            profile = resolve_profile(trial_model(), ShapeOptions("input:3x3"))
            targets = library.capabilities[-1:] or (CURRENT,)
            library.build(library.parse(path, trial_model()), BuildOptions(profile, targets))
    except VsfixError as error:
        absent = not found and "is not installed" in str(error)
        helps = "check the driver and the GPU with nvidia-smi" if found else remedy
        return BackendCheck(runtime, "SKIP" if absent else "FAIL", found, _without_advice(str(error)), helps)
    except Exception as error:  # see `_try`
        return BackendCheck(runtime, "FAIL", found, f"{type(error).__name__}: {first_line(error)}", remedy)
    return BackendCheck(runtime, "PASS", found)


def _version(*packages: str) -> str:
    """The version of the first package that is installed; empty where none is."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""


def _without_advice(message: str) -> str:
    """An error's message without its last clause, which the remedy says already."""
    return message.rpartition(";")[0] or message
