"""Runs trials as Ray tasks: on this machine, or on the cluster at an address.

A worker that is lost costs its run alone. Its folder stays: where all machines share it, the same command goes on with
the run where it was last saved.
"""

from __future__ import annotations

import builtins
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsfix.graph_passes.errors import CheckFailedError, InputError, MissingComponentError, StoppedError, VsfixError
from vsfix.trainers.training.training_loop import stop_on_signal

from .local_trials import Outcome
from .trial import Trial, run_trial
from .trial_store import TrialStore

_SECONDS_TO_ANSWER = 10.0
_SECONDS_BETWEEN_LOOKS = 1.0
_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}
_LOCAL = {"include_dashboard": False}


@dataclass(frozen=True)
class RayCluster:
    """Where the tasks run, and what each takes.

    Attributes:
        address: of a running cluster, as `ray.init` takes it; None starts Ray on this machine.
        cpus: processor cores of one run, and threads of torch in it.
        gpus: GPUs of one run; a fraction lets several share one.
    """

    address: str | None = None
    cpus: int = 1
    gpus: float = 0.0

    def run(self, trials: Sequence[Trial], store: TrialStore) -> Iterator[Outcome]:
        """Yields how each trial ended, as they end.

        Raises:
            MissingComponentError: ray is not installed, or there is no cluster at the address.
            InputError: a run that can't be started as it is; the others would end the same way.
        """
        ray = _import_ray()
        # Ray prints what befalls its workers on stdout, which is for results.
        with redirect_stdout(sys.stderr), _running(ray, self.address), stop_on_signal() as stop:
            self._require_resources(ray)
            # No retry: what killed a worker once, memory most of all, would kill the next one too.
            task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(run_trial)
            running = {
                task.remote(trial, Path(store.run_folder(trial)).resolve(), self.cpus): trial for trial in trials
            }
            while running:
                ended, _ = ray.wait(list(running), num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)
                if stop.signal:
                    raise StoppedError(
                        f"stopped; {len(running)} runs are left, the same command makes them", stop.signal
                    )
                for reference in ended:
                    yield _outcome(ray, reference, running.pop(reference))

    def _require_resources(self, ray: Any) -> None:
        """Ray would wait for ever for what its cluster does not have."""
        there = ray.cluster_resources()
        for name, wanted in (("CPU", self.cpus), ("GPU", self.gpus)):
            if wanted > there.get(name, 0):
                raise MissingComponentError(
                    f"--ray: a run is to have {wanted:g} {name}s, and the cluster has {there.get(name, 0):g};"
                    f" lower --{name.lower()}s"
                )


@contextmanager
def _running(ray: Any, address: str | None) -> Iterator[None]:
    """Connects to a cluster, or starts one; leaves it at the end, and all that Ray changes in the process as it was."""
    before, handler = builtins.print, signal.getsignal(signal.SIGTERM)
    try:
        _start(ray, address)
        yield
    finally:
        ray.shutdown()
        builtins.print = before
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingComponentError("--ray: ray is not installed; run: pip install 'vsfix[ray]'") from None
    return ray


def _start(ray: Any, address: str | None) -> None:
    """Connects to a cluster, or starts one."""
    if address is not None:
        _require_answer(address)
    else:
        # Ray would begin to write a secret for the cluster into the home folder; this one lives as long as the command.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers over the network
    try:
        ray.init(address=address or "local", job_config=_job_config(), **_QUIET | ({} if address else _LOCAL))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _unreachable(address, str(error)) from None


class _NoPaths(list[str]):
    """A list that takes nothing."""

    def extend(self, paths: Iterable[str]) -> None:
        """Leaves them out."""


def _job_config() -> Any:
    """A job whose workers don't look for modules in the current folder, where the files of strangers may lie.

    Ray has no option for it: it puts that folder, and that of the script, into this list.
    """
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _NoPaths()
    return config


def _require_answer(address: str) -> None:
    """Fails at once where nobody listens; Ray itself would try for minutes, and end the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # `auto`, which Ray looks up by itself
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from None


def _unreachable(address: str | None, reason: str) -> MissingComponentError:
    return MissingComponentError(
        f"--ray {address or 'local'}: can't connect ({' '.join(reason.split())[:200]}); start a cluster with"
        " `ray start --head`, or leave the address out"
    )


def _outcome(ray: Any, ended: Any, trial: Trial) -> Outcome:
    """The result of a task that ended, or its error."""
    try:
        return Outcome(trial, ray.get(ended))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, CheckFailedError) or not isinstance(cause, VsfixError):
            return Outcome(trial, None, " ".join(f"{type(cause).__name__}: {cause}".split()))
        raise InputError(str(cause)) from None
    except ray.exceptions.RayError as error:
        return Outcome(trial, None, f"its worker was lost ({type(error).__name__})")
