"""Trains a network into a folder: SGD, cross-entropy, a checkpoint after each epoch and, in long ones, in between.

What a step computes stands in `training_run`; here is when to save, to log, and to stop.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vsfix.graph_passes.errors import InputError, StoppedError, VsfixError, device_fault
from vsfix.graph_passes.progress import stage

from .checkpoint import Checkpoint, EpochMetrics
from .evaluation import STEPS_BETWEEN_CHECKS
from .fabric_session import fabric_session, is_first_process
from .run_folder import MetricsLog, RunFolder, tensorboard_log
from .training_config import TrainingConfig
from .training_data import load_training_data
from .training_run import TrainingRun

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECONDS_BETWEEN_SAVES = 600.0


@dataclass
class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        signal: the number of the signal that asked; 0 where none did.
    """

    signal: int = 0


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Yields the request that the first such signal makes; the next one does what it would have done.

    Outside the main thread Python can't take signals, and no request is ever made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def take(number: int, frame: object) -> None:
        request.signal = number
        put_back()

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _SIGNALS:
        # Who starts a process in the background may have it ignore Ctrl-C.
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, take)
    try:
        yield request
    finally:
        put_back()


@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    Attributes:
        checkpoint: the file with the trained network; `load_checkpoint` reads it.
        metrics: one entry per epoch.
        resumed_from: how many of the epochs an earlier call had finished.
        resumed_step: how many steps of the next one it had made.
    """

    checkpoint: Path
    metrics: tuple[EpochMetrics, ...]
    resumed_from: int
    resumed_step: int = 0

    @property
    def test_accuracy(self) -> float:
        """Top-1 share of the test images after the last epoch, in [0, 1]."""
        accuracy = self.metrics[-1].test_accuracy
        assert accuracy is not None  # the last epoch always is evaluated
        return accuracy


@dataclass(frozen=True)
class TrainingOptions:
    """Options beside the training; none of them changes what it computes.

    Attributes:
        force: start again, whatever the folder holds.
        log_shift: write the shift of each BatchNorm after every so many epochs, and after the last; 0 for never.
        evaluate: measure top-1 on the test images after every so many epochs, and after the last. Where few images are
            trained on for many epochs, the test images cost more than the training.
        tensorboard: write the metrics as TensorBoard events too.
        save_every: seconds after which a checkpoint is written in the middle of an epoch.
        workers: processes that decode image files; 0 decodes in this one.
        on_epoch: called after each epoch, when its checkpoint is written.

    Raises:
        InputError: a negative number, or no epochs between two evaluations.
    """

    force: bool = False
    log_shift: int = 0
    evaluate: int = 1
    tensorboard: bool = False
    save_every: float = SECONDS_BETWEEN_SAVES
    workers: int = 0
    on_epoch: Callable[[EpochMetrics], None] | None = None

    def __post_init__(self) -> None:
        if self.log_shift < 0 or not self.save_every >= 0 or self.workers < 0:
            raise InputError("training: log_shift, save_every and workers must not be negative")
        if self.evaluate < 1:
            raise InputError(f"training: evaluate must be at least 1, not {self.evaluate}")


def train(config: TrainingConfig, output: Path, options: TrainingOptions | None = None) -> TrainingResult:
    """Trains into a folder, or goes on with the run of the same configuration that stands there.

    Under `torchrun` all processes call this with the same arguments; the first one writes and reports.

    Args:
        config: what to train.
        output: the folder, made where it is missing; see `run_folder` for its files.
        options: beside the training.

    Raises:
        InputError: the data or the folder can't be used as they are, or another process trains into the folder.
        ModelError: the checkpoint in the folder is damaged.
        OutOfMemoryError: the device does not hold a step; the last checkpoint is kept.
        CheckFailedError: the loss or a weight is no longer finite; the last good checkpoint is kept.
        MissingComponentError: a library is not installed, or the GPU is lost; the last checkpoint is kept.
        StoppedError: Ctrl-C or SIGTERM came; a checkpoint is written, from which the same call goes on.
    """
    folder = RunFolder(output)
    with folder.held() if is_first_process() else nullcontext():
        return _train_into(folder, config, options or TrainingOptions())


def _train_into(folder: RunFolder, config: TrainingConfig, options: TrainingOptions) -> TrainingResult:
    """Trains into a folder that is held."""
    checkpoint = folder.open_for(config, force=options.force)
    if checkpoint is not None and checkpoint.epoch >= config.epochs:
        folder.write_views(checkpoint)
        return TrainingResult(folder.checkpoint, checkpoint.metrics, resumed_from=checkpoint.epoch)
    try:
        with fabric_session(config.precision) as fabric:
            return _train_with(fabric, config, folder, options, checkpoint)
    except VsfixError:
        folder.remove_if_empty()
        raise
    except RuntimeError as error:
        remedy = "lower --batch-size, or take each batch in parts with --accumulate"
        fault = device_fault(error, f"training, batch size {config.batch_size}", remedy)
        if fault is None:
            raise
        folder.remove_if_empty()
        raise fault from error


def _train_with(
    fabric: Fabric, config: TrainingConfig, folder: RunFolder, options: TrainingOptions, checkpoint: Checkpoint | None
) -> TrainingResult:
    """Trains in a session; the network is gone when this returns, which `fabric_session` relies on."""
    data = load_training_data(config, fabric.device, workers=options.workers)
    data.require_batches(config.batch_size, fabric.world_size * config.accumulate)
    run = TrainingRun(config, data, fabric, checkpoint)
    resumed_from = 0 if checkpoint is None else checkpoint.epoch
    resumed_step = run.steps_done - resumed_from * run.steps_per_epoch
    with stop_on_signal() as stop, _metrics_log(options, folder, run) as log:
        _finish(run, folder, options, stop, log)
    return TrainingResult(folder.checkpoint, tuple(run.metrics), resumed_from, resumed_step)


def _finish(
    run: TrainingRun, folder: RunFolder, options: TrainingOptions, stop: StopRequest, log: MetricsLog | None
) -> None:
    """Trains the epochs that are left; the first process writes."""
    epochs, writes = run.config.epochs, run.fabric.is_global_zero
    total = epochs * run.steps_per_epoch
    with stage("training", total, run.steps_done) if writes else nullcontext() as training:
        while len(run.metrics) < epochs:
            epoch = len(run.metrics) + 1
            saver = _Saver(run, folder, options.save_every, stop)
            for step in run.steps():
                if training is not None:
                    training.step(f"training: epoch {epoch} of {epochs}, {run.images_per_second:,.0f} images/s")
                saver.after(step)
            last = epoch == epochs
            logged = bool(options.log_shift) and (last or epoch % options.log_shift == 0)
            run.finish_epoch(log_shift=logged, evaluated=last or epoch % options.evaluate == 0)
            saver.save()
            if writes and log is not None:
                log(run.metrics[-1], [row for row in run.shift if row.epoch == epoch])
            if writes and options.on_epoch is not None:
                options.on_epoch(run.metrics[-1])
            saver.after_epoch()


class _Saver:
    """Writes the checkpoints of one epoch: when the time has come, and when the run is asked to stop."""

    def __init__(self, run: TrainingRun, folder: RunFolder, save_every: float, stop: StopRequest) -> None:
        self.run, self.folder, self.stop = run, folder, stop
        self.save_every = save_every
        self.saved_at = time.monotonic()

    def after(self, step: int) -> None:
        """Saves after a step of the epoch where it has to; the last step's is the epoch's own."""
        if step == self.run.steps_per_epoch:
            return
        # Several processes must agree, which costs; one alone looks at each step.
        if self.run.share.is_shared and step % STEPS_BETWEEN_CHECKS:
            return
        stopped = self._agreed(self.stop.signal)
        if stopped or self._agreed(int(time.monotonic() - self.saved_at >= self.save_every)):
            self.save()
        if stopped:
            raise StoppedError(
                f"training: stopped in epoch {len(self.run.metrics) + 1}, step {step} of {self.run.steps_per_epoch};"
                " saved, the same command goes on from there",
                stopped,
            )

    def after_epoch(self) -> None:
        """Stops after an epoch that is saved, where that was asked for since the last look."""
        stopped = self._agreed(self.stop.signal)
        if stopped:
            done, epochs = len(self.run.metrics), self.run.config.epochs
            left = "the run is finished" if done == epochs else "saved, the same command goes on from there"
            raise StoppedError(f"training: stopped after epoch {done} of {epochs}; {left}", stopped)

    def save(self) -> None:
        """Writes the state of the run; all processes call this together."""
        checkpoint = self.run.checkpoint()
        if self.run.fabric.is_global_zero:
            self.folder.save(checkpoint)
        self.saved_at = time.monotonic()

    def _agreed(self, wanted: int) -> int:
        """The largest wish of all processes."""
        if not self.run.share.is_shared:
            return wanted
        return max(self.run.share.gather(wanted))


@contextmanager
def _metrics_log(options: TrainingOptions, folder: RunFolder, run: TrainingRun) -> Iterator[MetricsLog | None]:
    """The TensorBoard log of the first process, where one is asked for."""
    wanted = options.tensorboard and run.fabric.is_global_zero
    with tensorboard_log(folder.path / "tensorboard", len(run.metrics)) if wanted else nullcontext() as log:
        yield log
