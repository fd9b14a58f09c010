"""A command of vsfix in a process forked off this one, which is quick: everything is imported already."""

from __future__ import annotations

import faulthandler
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path


def load_libraries() -> None:
    """Imports all of vsfix and what commands need, so that a forked process need not."""
    import lightning_fabric
    import sklearn.datasets
    import torch

    import vsfix.graph_passes
    import vsfix.pipeline
    import vsfix.trainers
    from vsfix.trainers.export.onnxruntime_library import import_onnxruntime

    torch.set_num_threads(1)
    import_onnxruntime()
    for package in (vsfix.graph_passes, vsfix.trainers, vsfix.pipeline):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            with suppress(ImportError):  # what an extra brings that is not installed
                importlib.import_module(module.name)
    assert lightning_fabric.Fabric
    assert sklearn.datasets.load_digits


def fork_command(command: Sequence[str], folder: Path, output: int, prepare: Callable[[], None] | None = None) -> int:
    """Starts `vsfix COMMAND`; returns the number of its process, which wants to be waited for.

    Args:
        command: the arguments.
        folder: where it runs; its temporary files go to `scratch` there.
        output: the descriptor that takes all that it prints.
        prepare: called in the new process before anything else, to limit it or to plant a fault.
    """
    process = os.fork()
    if process == 0:
        try:
            os._exit(_become(command, folder, output, prepare))
        finally:
            os._exit(99)  # whatever happens: this process must not go on with the work of the other
    return process


def run_command(command: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None) -> tuple[int, str]:
    """Runs `vsfix COMMAND` to its end; returns its exit code, negative for a signal, and what it printed."""
    read, write = os.pipe()  # a limit on files does not reach it
    process = fork_command(command, folder, write, prepare)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), said


def _become(command: Sequence[str], folder: Path, output: int, prepare: Callable[[], None] | None) -> int:
    """The new process; returns its exit code."""
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout = sys.stderr = os.fdopen(output, "w", closefd=False)  # a test may have put others there
    faulthandler.disable()  # pytest's writes to the terminal of the tests
    os.chdir(folder)
    (folder / "scratch").mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(folder / "scratch")
    if prepare is not None:
        prepare()
    from vsfix.pipeline.cli.main import vsfix

    try:
        vsfix(list(command), prog_name="vsfix")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 98
    finally:
        sys.stderr.flush()
    return 97
