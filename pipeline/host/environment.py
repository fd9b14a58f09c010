"""What produced a result: versions, machine, command line, date."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
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
    """The same without the command; `threads` where the user set their number."""
    facts = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "CPU": _processor(_CPU_INFO),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "python": platform.python_version(),
    }
    facts = {label: value for label, value in facts.items() if value}
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def peak_memory() -> str:
    """The most memory that this process has held so far, in MiB; empty where the system does not say."""
    try:
        import resource
    except ImportError:
        return ""
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB"


def _processor(path: Path) -> str:
    """The name of the processor, as Linux gives it; empty where it gives none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
