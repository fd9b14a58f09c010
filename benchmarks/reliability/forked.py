"""A command of vsfix in a process forked off this one, which is quick: everything is imported already."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn


def load_libraries() -> None:
    """Imports what commands need, so that a forked process need not."""
    import lightning_fabric
    import sklearn.datasets
    import torch

    from vsfix.pipeline.commands import benchmark, compare, export, inspect, optimize, package, train, verify
    from vsfix.trainers.onnxruntime_library import import_onnxruntime

    torch.set_num_threads(1)
    import_onnxruntime()
    commands = (benchmark, compare, export, inspect, optimize, package, train, verify)
    assert all(module.command for module in commands)
    assert lightning_fabric.Fabric
    assert sklearn.datasets.load_digits


def fork_command(command: Sequence[str], folder: Path, log: Path, prepare: Callable[[], None] | None = None) -> int:
    """Starts `vsfix COMMAND`; returns the number of its process, which wants to be waited for.

    Args:
        command: the arguments.
        folder: where it runs; its temporary files go to `scratch` there.
        log: takes all that it prints.
        prepare: called in the new process before anything else, to limit it or to plant a fault.
    """
    process = os.fork()
    if process == 0:
        _become(command, folder, log, prepare)
    return process


def run_command(command: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None) -> tuple[int, str]:
    """Runs `vsfix COMMAND` to its end; returns its exit code, negative for a signal, and what it printed."""
    log = folder.parent / f"{folder.name}.log"
    _, status = os.waitpid(fork_command(command, folder, log, prepare), 0)
    said = log.read_text(errors="replace")
    log.unlink()
    return os.waitstatus_to_exitcode(status), said


def _become(command: Sequence[str], folder: Path, log: Path, prepare: Callable[[], None] | None) -> NoReturn:
    """The new process."""
    code = 99
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout = sys.stderr = os.fdopen(file, "w", closefd=False)  # a test may have put others there
        os.chdir(folder)
        (folder / "scratch").mkdir(exist_ok=True)
        os.environ["TMPDIR"] = str(folder / "scratch")
        if prepare is not None:
            prepare()
        from vsfix.pipeline.cli import vsfix

        vsfix(list(command), prog_name="vsfix")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    finally:
        sys.stderr.flush()
        os._exit(code)
