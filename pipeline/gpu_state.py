"""What the driver says of the GPU: name, driver, clocks, power, and why it runs slower than it could."""

from __future__ import annotations

import shutil
import subprocess

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
    return dict(zip(_FIELDS, values, strict=True))
