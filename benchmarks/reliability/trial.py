"""One command on one input, in a forked process with limits, and what became of it."""

from __future__ import annotations

import hashlib
import os
import resource
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forked import fork_command

SECONDS = 20.0
MEBIBYTES = 1024  # beyond what the process has when it begins
CLEAN = {0: "done", 1: "check failed", 2: "refused", 3: "component missing", 4: "engine refused"}
_KILOBYTES = 1 << 10


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        verdict: one of `CLEAN`, or what went wrong: traceback, crash, hang, memory, stray, message, leftover, output.
        exit_code: of the process; negative for the signal that ended it.
        seconds: wall time.
        mebibytes: of memory that it held at most, the libraries that it began with included.
        said: the end of what it printed.
    """

    verdict: str
    exit_code: int
    seconds: float
    mebibytes: float
    said: str

    @property
    def is_clean(self) -> bool:
        """Whether the command ended as it may."""
        return self.verdict in CLEAN.values()


def run_trial(command: Sequence[str], folder: Path) -> Outcome:
    """Runs `vsfix COMMAND` in a folder whose only writable part by right is `out/`.

    The process is forked off this one, in which everything should be imported that it needs.

    Args:
        command: the arguments.
        folder: holds the inputs, and the empty folder `out`.
    """
    before = _digests(folder)
    read, write = os.pipe()
    log = folder.parent / f"{folder.name}.log"
    began = time.monotonic()
    resident = _resident()
    with log.open("wb") as output:
        process = fork_command(command, folder, output.fileno(), _limit)
    os.close(write)
    ready, _, _ = select.select([read], [], [], SECONDS)  # ends when the process does, and with it its end of the pipe
    os.close(read)
    if not ready:
        os.kill(process, signal.SIGKILL)
    _, status, usage = os.wait4(process, 0)
    seconds, exit_code = time.monotonic() - began, os.waitstatus_to_exitcode(status)
    said = log.read_text(errors="replace")
    log.unlink()
    peak = usage.ru_maxrss / _KILOBYTES
    verdict = _judge(exit_code, said, peak - resident, hung=not ready) or _judge_files(folder, before, exit_code, said)
    return Outcome(verdict or CLEAN[exit_code], exit_code, seconds, peak, said[-2000:])


def _limit() -> None:
    """Takes from this process all memory past its limit, and the right to leave a core file."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (MEBIBYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _judge(exit_code: int, said: str, grown: float, *, hung: bool) -> str | None:
    """What went wrong with the process; None where nothing did."""
    if hung:
        return "hang"
    if exit_code < 0:
        return "crash"
    if "vsfix: error: not enough memory" in said or grown > MEBIBYTES:
        return "memory"
    if exit_code not in CLEAN or "Traceback (most recent call last)" in said:
        return "traceback"
    errors = [line for line in said.splitlines() if line.startswith("vsfix: error: ")]
    if exit_code > 1 and (len(errors) != 1 or len(errors[0]) > 1000):
        return "message"
    return None


def _judge_files(folder: Path, before: dict[str, str], exit_code: int, said: str) -> str | None:
    """What went wrong with the files; None where nothing did."""
    after = _digests(folder)
    new = [name for name in after if name not in before]
    if any(before[name] != after.get(name) for name in before) or any(not name.startswith("out/") for name in new):
        return "stray"
    if any(".part" in name for name in new):
        return "leftover"
    models = [name for name in new if name.endswith(".onnx")]
    if exit_code == 0 and not all(_is_valid(folder / name, said) for name in models):
        return "output"
    return "leftover" if exit_code and models else None


def _is_valid(path: Path, said: str) -> bool:
    """Whether a written model passes the checker and holds no number that is none, but masks and what was told."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    for tensor in onnx.load(path).graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            is_mask = not np.isnan(array).any() and np.unique(array[np.isfinite(array)]).size < 2
            if not is_mask and f"WARN '{tensor.name}', read by" not in said:
                return False
    return True


def _digests(folder: Path) -> dict[str, str]:
    """What stands in a folder and its folders, `scratch` left out."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not name.startswith("scratch") and (path.is_file() or path.is_symlink()):
            found[name] = str(path.readlink()) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _resident() -> float:
    """What this process holds in memory, in MiB; a fork begins with as much."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)
