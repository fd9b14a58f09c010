"""Which backends work on this machine. Each is tried, not just looked for; a number that is wrong is found too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx
import onnx.parser

from vsfix.graph_passes.errors import MissingComponentError, VsfixError, first_line
from vsfix.graph_passes.ir.runtime import Array, Runner
from vsfix.graph_passes.progress import stage
from vsfix.pipeline.host.quantizer import INSTALL_LINE as QUANTIZER_LINE
from vsfix.pipeline.host.quantizer import find_quantizer, try_quantizer
from vsfix.pipeline.tensorrt.cuda import INSTALL_LINE, open_cuda, visible_capability
from vsfix.pipeline.tensorrt.library import CURRENT, INSTALL_LINES, RUNTIMES, BuildOptions, TensorRt, open_library
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions, resolve_profile

from .execution_provider import CPU, CUDA, TENSORRT, install_line
from .onnxruntime_runner import OnnxRuntimeRunner
from .plugin_provider import TENSORRT_RTX, plugin_version
from .reference_runner import ReferenceRunner
from .tensorrt_runner import TensorRtRunner

_QUANTIZER = "quantizer"
_MODEL = """<ir_version: 8, opset_import: ["" : 13]>
trial (float[N, 3] input) => (float[N, 2] logits) <float[3, 2] weight = {1, -1, 2, 0.5, -0.25, 4}> {
    product = MatMul (input, weight)
    logits = Relu (product)
}"""
_WEIGHT = np.array([[1, -1], [2, 0.5], [-0.25, 4]], dtype=np.float32)
_INPUT = np.array([[1, 2, 3], [-1, 0.5, 0], [2, -2, 8]], dtype=np.float32)
_TRAIN_LINE = "pip install 'vsfix[train]'"
_COMPILER_LINE = "install a C++ compiler; Debian: apt-get install g++"
_ONNX_LINE = "pip install onnx"
_NVIDIA_LINE = "check the driver and the GPU with nvidia-smi"
_CUDA_TORCH_LINE = "install a CUDA build of torch: https://pytorch.org/get-started/locally"


@dataclass(frozen=True)
class BackendCheck:
    """The state of one backend.

    Attributes:
        name: as `--backend` would take it.
        status: PASS it ran and its numbers are right; WARN it builds engines and can't run them here; SKIP it is not
            here; FAIL it is here and does not work.
        version: of the package, empty where there is none.
        reason: why it does not work; empty where it does.
        remedy: the line that installs it; empty where it works.
    """

    name: str
    status: Literal["PASS", "WARN", "SKIP", "FAIL"]
    version: str
    reason: str = ""
    remedy: str = ""


def check_backends(names: Iterable[str] | None = None) -> tuple[BackendCheck, ...]:
    """Tries every backend on a small model; each TensorRT builds an engine of it first.

    Args:
        names: those to try; None for all.
    """
    checks: Mapping[str, Callable[[str], BackendCheck]] = {
        "torch": lambda name: _check_torch(name, "cpu", _TRAIN_LINE),
        "torch (CUDA)": lambda name: _check_torch(name, "cuda", _CUDA_TORCH_LINE),
        "torch-compile": lambda name: _check_torch(name, "cpu", _COMPILER_LINE, compiled=True),
        "onnxruntime": lambda name: _check_onnxruntime(name, CPU),
        "onnxruntime-cuda": lambda name: _check_onnxruntime(name, CUDA),
        "onnxruntime-tensorrt": lambda name: _check_onnxruntime(name, TENSORRT),
        "onnxruntime-tensorrt-rtx": _check_plugin,
        **dict.fromkeys(RUNTIMES, _check_tensorrt),
        "reference": lambda name: _try(name, version("onnx"), lambda: ReferenceRunner(trial_model()), _ONNX_LINE),
        _QUANTIZER: _check_quantizer,
    }
    wanted = list(checks if names is None else names)
    found = []
    with stage("trying the backends", len(wanted)) as trying:
        for name in wanted:
            trying.next(f"trying {name}")
            found.append(checks[name](name))
    return tuple(found)


def can_infer(checks: tuple[BackendCheck, ...]) -> bool:
    """Whether any real runtime works: the reference evaluator is too slow to count, and the quantizer runs nothing."""
    return any(check.status == "PASS" for check in checks if check.name not in ("reference", _QUANTIZER))


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


def _check_quantizer(name: str) -> BackendCheck:
    """ModelOpt, in the environment of its own."""
    try:
        return BackendCheck(name, "PASS", try_quantizer(find_quantizer()))
    except VsfixError as error:
        absent = isinstance(error, MissingComponentError)
        return BackendCheck(name, "SKIP" if absent else "FAIL", "", _without_advice(str(error)), QUANTIZER_LINE)


def _judge(name: str, found: str, output: Array, remedy: str) -> BackendCheck:
    """The numbers are small and exact in float32, so any difference is a defect."""
    if np.array_equal(output, np.maximum(_INPUT @ _WEIGHT, 0)):
        return BackendCheck(name, "PASS", found)
    return BackendCheck(name, "FAIL", found, "runs, but computes wrong numbers", remedy)


def _check_torch(name: str, device: str, remedy: str, *, compiled: bool = False) -> BackendCheck:
    """A linear layer and a ReLU in torch."""
    found = _version("torch")
    if not found:
        return BackendCheck(name, "SKIP", "", "torch is not installed", _TRAIN_LINE)

    def open_trial() -> Runner:
        import torch

        from .torch_runner import TorchRunner

        linear = torch.nn.Linear(3, 2, bias=False)
        linear.load_state_dict({"weight": torch.from_numpy(_WEIGHT.T.copy())})
        return TorchRunner(torch.nn.Sequential(linear, torch.nn.ReLU()), device=device, compiled=compiled)

    return _try(name, found, open_trial, remedy)


def _check_onnxruntime(name: str, provider: str) -> BackendCheck:
    """The small model in ONNX Runtime."""
    found = _version("onnxruntime", "onnxruntime-gpu")
    remedy = install_line(provider)
    if not found:
        return BackendCheck(name, "SKIP", "", "onnxruntime is not installed", remedy)
    return _try(name, found, lambda: OnnxRuntimeRunner(trial_model(), provider=provider), remedy)


def _check_plugin(name: str) -> BackendCheck:
    """The same in the plugin, which has a version of its own and may be there without a GPU for it."""
    check = _check_onnxruntime(name, TENSORRT_RTX)
    found = plugin_version()
    if not check.version or check.status == "PASS":
        return replace(check, version=found)
    return replace(check, version=found, remedy=_NVIDIA_LINE if found else check.remedy)


def _check_tensorrt(runtime: str) -> BackendCheck:
    """An engine of the small model, built for the GPU here or else for one that is named, and run."""
    remedy = INSTALL_LINES[runtime]
    found = ""
    try:
        library = open_library(runtime)
        found = library.version
        plan = _build_trial(library)
    except VsfixError as error:
        absent = not found and "is not installed" in str(error)
        status: Literal["SKIP", "FAIL"] = "SKIP" if absent else "FAIL"
        return BackendCheck(runtime, status, found, _without_advice(str(error)), _NVIDIA_LINE if found else remedy)
    except Exception as error:  # see `_try`
        return BackendCheck(runtime, "FAIL", found, f"{type(error).__name__}: {first_line(error)}", remedy)
    try:
        cuda = open_cuda()
    except VsfixError as error:
        reason = f"builds engines, but can't run them: {_without_advice(str(error))}"
        return BackendCheck(
            runtime, "WARN", found, reason, INSTALL_LINE if INSTALL_LINE in str(error) else _NVIDIA_LINE
        )
    if library.capabilities and cuda.capability not in library.capabilities:
        reason = f"builds engines, but none for the {cuda.capability} here"
        return BackendCheck(runtime, "WARN", found, reason, "build with --runtime tensorrt on this machine")
    return _try(runtime, found, lambda: TensorRtRunner(library.load(plan), cuda), _NVIDIA_LINE)


def _build_trial(library: TensorRt) -> bytes:
    """The small model as an engine."""
    known = [name for name in library.capabilities if name == visible_capability()] or library.capabilities
    target = known[-1] if known else CURRENT
    profile = resolve_profile(trial_model(), ShapeOptions("input:3x3"))
    with TemporaryDirectory() as folder:
        path = Path(folder, "trial.onnx")
        onnx.save(trial_model(), path)
        return library.build(library.parse(path, trial_model()), BuildOptions(profile, (target,))).plan


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
