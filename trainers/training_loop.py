"""Trains a network: SGD with Nesterov momentum, cross-entropy, a warm-up and half a cosine.

    rate(t) = peak * (t + 1) / W                           t < W, the steps of the warm-up
    rate(t) = peak * (1 + cos(pi (t - W) / (T - W))) / 2   W <= t < T, all steps

Everything random in epoch e (the order of the images, the noise) follows from the seed and e alone, not from what was
drawn before. That is why a run that was interrupted ends in the same weights, bit for bit on a CPU, as one that was
not, and why no state of a random generator has to be saved, for one process or for many.

All images lie preprocessed in one tensor on the device, and a batch is an index into it: no worker processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from vsfix.graph_passes.errors import CheckFailedError, ModelError

from .checkpoint import Checkpoint, EpochMetrics
from .fabric_session import fabric_session
from .network import build_network
from .run_folder import RunFolder
from .training_config import TrainingConfig
from .training_data import TrainingData, load_training_data

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_WEIGHTS, _ORDER, _NOISE = range(3)  # what a random stream is for
_STEPS_BETWEEN_CHECKS = 50
_EVALUATION_BATCH = 500


@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    Attributes:
        checkpoint: the file with the trained network; `load_checkpoint` reads it.
        metrics: one entry per epoch.
        resumed_from: how many of the epochs an earlier call had finished.
    """

    checkpoint: Path
    metrics: tuple[EpochMetrics, ...]
    resumed_from: int

    @property
    def test_accuracy(self) -> float:
        """Top-1 share of the test images after the last epoch, in [0, 1]."""
        return self.metrics[-1].test_accuracy


def train(
    config: TrainingConfig,
    output: Path,
    *,
    force: bool = False,
    progress: bool = False,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
) -> TrainingResult:
    """Trains into a folder, or goes on with the run of the same configuration that stands there.

    Under `torchrun` all processes call this with the same arguments; the first one writes and reports.

    Args:
        config: what to train.
        output: the folder, made where it is missing; see `run_folder` for its files.
        force: start again, whatever the folder holds.
        progress: show a bar with the time left on stderr, where that is a terminal.
        on_epoch: called after each epoch, when its checkpoint is written.

    Raises:
        InputError: the data or the folder can't be used as they are.
        ModelError: the checkpoint in the folder is damaged.
        CheckFailedError: the loss or a weight is no longer finite; the checkpoint of the last good epoch is kept.
        MissingComponentError: a library is not installed.
    """
    folder = RunFolder(output)
    checkpoint = folder.open_for(config, force=force)
    resumed_from = 0 if checkpoint is None else checkpoint.epoch
    if checkpoint is not None and checkpoint.epoch >= config.epochs:
        folder.write_views(checkpoint)
        return TrainingResult(folder.checkpoint, checkpoint.metrics, resumed_from)
    data = load_training_data(config)
    with fabric_session(config.precision) as fabric:
        data.require_batches(config.batch_size, fabric.world_size)
        metrics = _finish(_Run(config, data.to(fabric.device), fabric, checkpoint), folder, progress, on_epoch)
    return TrainingResult(folder.checkpoint, metrics, resumed_from)


def evaluate_accuracy(
    module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, batch_size: int = _EVALUATION_BATCH
) -> float:
    """Top-1 accuracy in eval mode; every part of the module is in its former mode afterwards.

    Args:
        module: the network, on the device of `inputs`.
        inputs: preprocessed images, float32, shape (N, C, h, w), N at least 1.
        labels: class indices, int64, shape (N,).
        batch_size: images in one forward pass.

    Returns:
        The share of right answers, in [0, 1].
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.inference_mode():
            right = torch.zeros((), dtype=torch.int64, device=inputs.device)
            for images, classes in zip(torch.split(inputs, batch_size), torch.split(labels, batch_size), strict=True):
                right += (module(images).argmax(dim=1) == classes).sum()
    finally:
        for part, training in modes:
            part.training = training
    return int(right) / len(inputs)


def _finish(
    run: _Run, folder: RunFolder, progress: bool, on_epoch: Callable[[EpochMetrics], None] | None
) -> tuple[EpochMetrics, ...]:
    """Trains the epochs that are left; the first process writes a checkpoint after each."""
    epochs, writes = run.config.epochs, run.fabric.is_global_zero
    steps, done = epochs * run.steps_per_epoch, len(run.metrics) * run.steps_per_epoch
    with _progress_bar(progress and writes, steps, done) as advance:
        while len(run.metrics) < epochs:
            run.train_epoch(advance)
            if not writes:
                continue
            folder.save(run.checkpoint())
            if on_epoch is not None:
                on_epoch(run.metrics[-1])
    return tuple(run.metrics)


class _Run:
    """The state of a run between two epochs, and the step from one to the next."""

    def __init__(
        self, config: TrainingConfig, data: TrainingData, fabric: Fabric, checkpoint: Checkpoint | None
    ) -> None:
        self.config = config
        self.data = data
        self.fabric = fabric
        self.steps_per_epoch = len(data.labels) // config.batch_size
        self.metrics: list[EpochMetrics] = []
        torch.manual_seed(_seed(config.seed, _WEIGHTS))
        self.module = build_network(config.network)
        if fabric.device.type == "cuda":
            self.module = self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.module.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )
        self.parallel, self.stepper = fabric.setup(self.module, self.optimizer)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        if checkpoint is not None:
            self._restore(checkpoint)

    def train_epoch(self, advance: Callable[[str], None]) -> None:
        """Trains and evaluates one epoch and appends its metrics."""
        started = time.perf_counter()
        epoch = len(self.metrics) + 1
        torch.manual_seed(_seed(self.config.seed, _NOISE, epoch, self.fabric.global_rank))
        self.parallel.train()
        losses = torch.zeros(self.steps_per_epoch, device=self.fabric.device)
        for step, rows in enumerate(self._batches(epoch)):
            losses[step] = self._step(rows)
            if (step + 1) % _STEPS_BETWEEN_CHECKS == 0 or step + 1 == self.steps_per_epoch:
                losses = self._require_finite(losses, epoch)
            advance(f"epoch {epoch}/{self.config.epochs}")
        self._require_finite_weights(epoch)
        accuracy = evaluate_accuracy(self.module, self.data.test_inputs, self.data.test_labels)
        seconds = time.perf_counter() - started
        # The processes hold slightly different BatchNorm statistics; the first one's are those that are saved.
        metrics = EpochMetrics(epoch, float(losses.mean()), accuracy, seconds)
        self.metrics.append(self.fabric.broadcast(metrics))

    def checkpoint(self) -> Checkpoint:
        """Where the run stands."""
        return Checkpoint(
            training=self.config,
            preprocessing=self.data.preprocessing,
            model={name: tensor.contiguous() for name, tensor in self.module.state_dict().items()},
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            metrics=tuple(self.metrics),
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            self.module.load_state_dict(checkpoint.model)
            self.optimizer.load_state_dict(checkpoint.optimizer)
            self.scheduler.load_state_dict(checkpoint.scheduler)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"checkpoint: damaged, can't go on from it ({reason}); pass --force to start again"
            ) from None
        self.metrics = list(checkpoint.metrics)

    def _rate(self, step: int) -> float:
        """The learning rate as a share of its peak."""
        steps = self.config.epochs * self.steps_per_epoch
        warmup = int(self.config.warmup * steps)
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2

    def _batches(self, epoch: int) -> Iterator[torch.Tensor]:
        """The rows of each batch that fall to this process."""
        order = np.random.default_rng(_seed(self.config.seed, _ORDER, epoch)).permutation(len(self.data.labels))
        used = self.steps_per_epoch * self.config.batch_size
        batches = torch.from_numpy(order[:used]).to(self.fabric.device).view(self.steps_per_epoch, -1)
        for batch in batches:
            yield batch[self.fabric.global_rank :: self.fabric.world_size]

    def _step(self, rows: torch.Tensor) -> torch.Tensor:
        """One step of the optimizer; returns the loss before it."""
        loss = nn.functional.cross_entropy(self.parallel(self.data.inputs[rows]), self.data.labels[rows])
        self.stepper.zero_grad()
        self.fabric.backward(loss)
        self.stepper.step()
        self.scheduler.step()
        return loss.detach()

    def _require_finite(self, losses: torch.Tensor, epoch: int) -> torch.Tensor:
        """Checks the losses so far, those of all processes together, and returns them.

        Done now and then and not at each step, because reading a number makes the program wait for the GPU.
        """
        together = self.fabric.all_reduce(losses, reduce_op="mean")
        assert isinstance(together, torch.Tensor)
        bad = torch.nonzero(~torch.isfinite(together))
        if len(bad):
            self._fail(f"the loss is {float(together[bad[0]]):g}", epoch, int(bad[0]) + 1)
        return together

    def _require_finite_weights(self, epoch: int) -> None:
        """The last step of an epoch can spoil the weights without a loss that shows it."""
        for name, tensor in self.module.state_dict().items():
            if not torch.isfinite(tensor).all():
                self._fail(f"{name} is no longer finite", epoch, self.steps_per_epoch)

    def _fail(self, what: str, epoch: int, step: int) -> None:
        kept = f"epoch {epoch - 1} is kept" if epoch > 1 else "nothing was written"
        raise CheckFailedError(
            f"training: {what} in epoch {epoch}, step {step} of {self.steps_per_epoch};"
            f" {kept}, lower the learning rate ({self.config.learning_rate:g})"
        )


def _seed(seed: int, *purpose: int) -> int:
    """The seed of one random stream, independent of all others; `purpose` says what for, and in which epoch."""
    # As spawn_key, because in the entropy itself trailing zeros make no difference.
    return int(np.random.SeedSequence(seed, spawn_key=purpose).generate_state(1, np.uint64)[0])


@contextmanager
def _progress_bar(shown: bool, total: int, done: int) -> Iterator[Callable[[str], None]]:
    """Yields what moves the bar on by one step and sets its text."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (shown and console.is_terminal)
    with Progress(*columns, console=console, redirect_stdout=False, disable=hidden) as bar:
        task = bar.add_task("training", total=total, completed=done)
        yield lambda text: bar.update(task, advance=1, description=text)
