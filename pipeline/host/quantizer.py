"""NVIDIA ModelOpt, which decides where a graph is quantised and by what scales.

It pins packages that don't go together with others, and so lives in an environment of its own, which
`vsfix doctor --install quantizer` makes, and is called as a process. Of the packages that it names those that need a
GPU are left out, with the CPU build of ONNX Runtime instead of the other: calibration runs on the CPU.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vsfix.graph_passes.errors import CheckFailedError, InputError, MissingComponentError
from vsfix.graph_passes.io.atomic_file import atomic_path
from vsfix.graph_passes.io.named_file import user_path
from vsfix.trainers.export.onnxruntime_library import TELEMETRY_OFF

VERSION = "0.47.0"
VARIABLE = "VSFIX_QUANTIZER"
INSTALL_LINE = "vsfix doctor --install quantizer"
_MODELOPT = f"nvidia-modelopt=={VERSION}"
_BESIDE = (  # what ModelOpt imports for ONNX, as tried with this version
    *("torch==2.13.0", "numpy==2.4.6", "onnx==1.21.0", "onnxruntime==1.32.0", "onnx-graphsurgeon==0.6.1"),
    *("onnxslim==0.1.98", "onnxscript==0.7.2", "onnxconverter-common==1.16.0", "polygraphy==0.53.6", "lief==1.0.0"),
    *("ml-dtypes==0.6.0", "omegaconf==2.4.0", "pydantic==2.14.3", "PyYAML==6.0.3", "PuLP==3.3.2", "regex==2026.11.15"),
    *("safetensors==0.8.0", "scipy==1.17.1", "tqdm==4.70.1", "rich==15.0.0", "nvidia-ml-py==13.615.71"),
    "cppimport==26.4.17",
)
_STAMP = "complete.json"
Method = Literal["max", "entropy"]


def quantizer_folder() -> Path:
    """Where the environment of this version stands where the user names no other."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(root) if root and Path(root).is_absolute() else Path.home() / ".cache"
    return folder / "vsfix" / f"quantizer-{VERSION}"


def find_quantizer() -> Path:
    """The Python that has ModelOpt: that of `VSFIX_QUANTIZER`, or of the environment that vsfix made.

    Raises:
        InputError: `VSFIX_QUANTIZER` names no file, or none that can be run.
        MissingComponentError: there is no environment, or a half-made one.
    """
    named = os.environ.get(VARIABLE)
    if named:
        # ModelOpt runs in another folder. Not resolved: the Python of an environment is a link out of it.
        python = user_path(named).absolute()
        if not python.is_file() or not os.access(python, os.X_OK):
            wrong = "can't be run" if python.exists() else "no such file"
            raise InputError(f"{VARIABLE}={named}: {wrong}; name the Python of an environment with ModelOpt")
        return python
    folder = quantizer_folder()
    if not (folder / _STAMP).is_file():
        raise MissingComponentError(
            f"ModelOpt, which quantises, is not installed; run: {INSTALL_LINE} (1.4 GB, in {folder})"
        )
    return folder / "bin" / "python"


def install_quantizer() -> Path:
    """Makes the environment, unless it is there; what an interrupted call left is thrown away first.

    Raises:
        MissingComponentError: pip can't install it; its last line is quoted.
    """
    folder = quantizer_folder()
    python = folder / "bin" / "python"
    if (folder / _STAMP).is_file():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    _install([sys.executable, "-I", "-m", "venv", str(folder)])
    pip = [str(python), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _install([*pip, *_BESIDE])
    _install([*pip, "--no-deps", _MODELOPT])
    with atomic_path(folder / _STAMP, force=True) as stamp:
        stamp.write_text(json.dumps({"modelopt": VERSION, "beside": _BESIDE}))
    return python


def try_quantizer(python: Path) -> str:
    """Asks ModelOpt for its version.

    Raises:
        CheckFailedError: it does not load.
    """
    code = "import modelopt, modelopt.onnx.quantization; print(modelopt.__version__)"
    result = subprocess.run(
        [str(python), "-I", "-c", code], capture_output=True, text=True, check=False, env=_environment()
    )
    if result.returncode:
        raise CheckFailedError(f"ModelOpt does not load in {python}: {_last_line(result)}; install it anew")
    return result.stdout.split()[-1]


@dataclass(frozen=True)
class QuantizerCall:
    """The request to ModelOpt.

    Attributes:
        model: a float32 ONNX file.
        data: an `.npz` file, one array for each input of the model.
        shapes: of one calibration run, by input; ModelOpt leaves products of one row in float, so that a batch of one
            would leave every fully connected layer out.
        output: where the quantised file goes.
        precision: `int8` or `fp8`.
        method: how the range of an activation is found in the data.
    """

    model: Path
    data: Path
    shapes: Mapping[str, tuple[int, ...]]
    output: Path
    precision: str
    method: Method = "max"

    def arguments(self) -> list[str]:
        """As ModelOpt's command line takes them."""
        options = {
            "onnx_path": self.model,
            "quantize_mode": self.precision,
            "calibration_data_path": self.data,
            "calibration_shapes": ",".join(f"{name}:{'x'.join(map(str, s))}" for name, s in self.shapes.items()),
            "calibration_method": self.method,
            "calibration_eps": "cpu",
            "high_precision_dtype": "fp32",
            "output_path": self.output,
        }
        return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def quantize_file(python: Path, call: QuantizerCall) -> None:
    """Calls ModelOpt on a file.

    Args:
        python: as `find_quantizer` gives it.
        call: what it is asked.

    Raises:
        CheckFailedError: it is killed, or ends with an error, whose last line is quoted, or without a file.
    """
    # -I: neither PYTHONPATH nor the current folder may put another package before one there.
    command = [str(python), "-I", "-m", "modelopt.onnx.quantization", *call.arguments()]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=call.output.parent,
        env=_environment(),
    )
    if result.returncode < 0:
        name = signal.Signals(-result.returncode).name
        raise CheckFailedError(
            f"ModelOpt was killed ({name}), as happens where memory ends; take fewer --samples; nothing is written"
        )
    if result.returncode:
        raise CheckFailedError(f"ModelOpt can't quantise the model: {_last_line(result)}; nothing is written")
    if not call.output.is_file():
        raise CheckFailedError(f"ModelOpt ended without a file: {_last_line(result)}; nothing is written")


def _environment() -> dict[str, str]:
    """The environment of its process, in which ONNX Runtime reports nothing to its makers."""
    return {TELEMETRY_OFF: "1"} | os.environ


def _install(command: list[str]) -> None:
    """Runs one step of the installation."""
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode:
        raise MissingComponentError(f"the environment of ModelOpt can't be made: {_last_line(result)}")


def _last_line(result: subprocess.CompletedProcess[str]) -> str:
    """The last line that a process wrote, on stderr where there is one."""
    lines = [line.strip() for text in (result.stdout, result.stderr) for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"it ends with {result.returncode} and says nothing"
