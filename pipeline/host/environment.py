"""The provenance of a result: versions, machine, command line, date."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_PACKAGES = (
    *("vsfix", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "onnx-graphsurgeon", "numpy"),
    *("tensorrt", "tensorrt-rtx-cu13", "cuda-python"),
)


_FIELDS = {
    "GPU": "name",
    "driver": "driver_version",
    "SM clock": "clocks.sm",
    "highest SM clock": "clocks.max.sm",
    "throttle reasons": "clocks_throttle_reasons.active",
    "power": "power.draw",
    "temperature": "temperature.gpu",
    "memory used": "memory.used",
}
_SECONDS = 20
_IDLE, _UNKNOWN = "GPU idle", "not told"
# Bits of NVML's clocksEventReasons, in its order.
_REASONS = (
    *(_IDLE, "clocks set by an application", "software power cap", "hardware slowdown", "sync boost"),
    *("software thermal slowdown", "hardware thermal slowdown", "hardware power brake", "display clocks"),
)
_HARMLESS = frozenset({_IDLE, _UNKNOWN, "none", "clocks set by an application", "sync boost", "display clocks"})
_OF_LOAD = ("SM clock", "highest SM clock", "throttle reasons", "power", "temperature", "memory used")


def command_line() -> str:
    """The command that runs, as a shell takes it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def describe_environment() -> dict[str, str]:
    """The command, the date, the machine and the versions: labels and values, in the order to show them in."""
    return {"command": command_line()} | describe_machine()


def describe_machine() -> dict[str, str]:
    """The environment without the command; `threads` where the user set their number."""
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


def describe_gpu() -> dict[str, str]:
    """Labels and values of the first GPU, as nvidia-smi gives them; empty on a machine without nvidia-smi.

    Where nvidia-smi is there and gives nothing, the one entry says so.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    line = [program, f"--query-gpu={','.join(_FIELDS.values())}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"GPU": f"nvidia-smi does not answer: {error}"}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode or len(values) != len(_FIELDS):
        return {"GPU": f"nvidia-smi does not answer: {' '.join((done.stdout + done.stderr).split())}"}
    facts = dict(zip(_FIELDS, values, strict=True))
    return facts | {"throttle reasons": _reasons(facts["throttle reasons"])}


def load_of(facts: dict[str, str]) -> str:
    """The facts that change from moment to moment, in one line; empty where there are none."""
    return ", ".join(f"{label} {facts[label]}" for label in _OF_LOAD if label in facts)


def throttling(facts: dict[str, str]) -> str:
    """The reasons that slow the GPU down; empty where there is none."""
    reasons = facts.get("throttle reasons", "").split("; ")
    return "; ".join(reason for reason in reasons if reason and reason not in _HARMLESS)


def _reasons(mask: str) -> str:
    """The bits in words; the driver does not tell them of every GPU."""
    try:
        bits = int(mask, 16)
    except ValueError:
        return _UNKNOWN
    found = [reason for bit, reason in enumerate(_REASONS) if bits >> bit & 1]
    other = bits >> len(_REASONS) << len(_REASONS)
    return "; ".join([*found, *([f"0x{other:x}"] if other else [])]) or "none"
