"""What produced a result: versions, machine, command line, date."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = (
    *("vsfix", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "onnx-graphsurgeon", "numpy"),
    *("tensorrt", "tensorrt-rtx-cu13", "cuda-python"),
)


def command_line() -> str:
    """The command that runs, as a shell takes it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def describe_environment() -> dict[str, str]:
    """The command, the date, the machine and the versions: labels and values, in the order to show them in."""
    return {"command": command_line()} | describe_machine()


def describe_machine() -> dict[str, str]:
    """The same without the command."""
    facts = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts
