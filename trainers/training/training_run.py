"""One training run: its state, and the step from one state to the next.

Everything random in epoch e (the order of the images, the noise) follows from the seed and e alone, what is drawn for
the augmentation from the seed, e and the step. That is why a run that was interrupted between two epochs needs no
state of a random generator to end in the same weights, bit for bit on a CPU, as one that was not; in the middle of an
epoch the states of the noise's generators are all that it needs.

The moving average of the weights and of the BatchNorms' statistics, where one is asked for:

    a <- d_n a + (1 - d_n) w        d_n = min(d, (1 + n) / (10 + n))        after n steps

The decay grows to d: with d from the start, the random weights of the beginning would be a part of a short run's
average, and statistics that mix them with later ones fit no network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from vsfix.graph_passes.errors import CheckFailedError, InputError, ModelError
from vsfix.trainers.networks.network import build_network

from .augmentation import augment, draw_augmentation, mixed_cross_entropy
from .checkpoint import Checkpoint, EpochMetrics, EpochPosition
from .evaluation import EVALUATION_BATCH, EpochLosses, shared_accuracy
from .fabric_session import ProcessShare
from .random_streams import Stream, batch_rows, generator_states, set_generator_states, stream_seed
from .shift_log import BatchNormShift, measure_shift
from .training_config import TrainingConfig
from .training_data import TrainingData

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Average = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], torch.Tensor | int], None]
SHIFT_IMAGES = 2000


def moving_average(decay: float) -> Average:
    """The `multi_avg_fn` of `torch.optim.swa_utils.AveragedModel`.

    Args:
        decay: d, in (0, 1).
    """

    @torch.no_grad()
    def update(averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], steps: torch.Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(steps)) / (10 + int(steps)))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new.to(old.dtype), share)
            else:
                old.copy_(new)

    return update


class TrainingRun:
    """The state of a run and what moves it on.

    Attributes:
        config: what is trained.
        data: on the device.
        fabric: launched.
        share: this process among the others.
        steps_per_epoch: steps of the optimizer in one epoch.
        metrics: one entry for each finished epoch.
        shift: what was logged of the BatchNorms.
    """

    def __init__(
        self, config: TrainingConfig, data: TrainingData, fabric: Fabric, checkpoint: Checkpoint | None
    ) -> None:
        self.config = config
        self.data = data
        self.fabric = fabric
        self.share = ProcessShare(fabric)
        self.steps_per_epoch = len(data.labels) // config.batch_size
        self.metrics: list[EpochMetrics] = []
        self.shift: list[BatchNormShift] = []
        self._losses = EpochLosses(self.steps_per_epoch, fabric)
        self._seconds = 0.0
        self._position: EpochPosition | None = None
        self._kept = ""
        torch.manual_seed(stream_seed(config.seed, Stream.WEIGHTS))
        self.module = self._prepared(build_network(config.network))
        self.optimizer = torch.optim.SGD(
            self.module.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov and config.momentum > 0,
        )
        self.parallel, self.stepper = fabric.setup(self.module, self.optimizer)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.average = (
            AveragedModel(self.module, multi_avg_fn=moving_average(config.average), use_buffers=True)
            if config.average
            else None
        )
        if checkpoint is not None:
            self._restore(checkpoint)

    @property
    def steps_done(self) -> int:
        """Steps of the optimizer since the beginning of the run."""
        return len(self.metrics) * self.steps_per_epoch + self._losses.done

    @property
    def images_per_second(self) -> float:
        """Of this epoch so far, all devices together; 0 before its first step."""
        return self._losses.done * self.config.batch_size / self._seconds if self._seconds else 0.0

    def steps(self) -> Iterator[int]:
        """Trains what is left of the epoch; yields how many of its steps are done, after each.

        Raises:
            CheckFailedError: the loss is no longer finite.
        """
        epoch = len(self.metrics) + 1
        self._begin(epoch)
        self.parallel.train()
        order = stream_seed(self.config.seed, Stream.ORDER, epoch)
        rows = batch_rows(len(self.data.labels), self.config.batch_size, order, self.share.rows, self.config.accumulate)
        rows = rows[self._losses.done :]
        batches = self.data.images.batches([part for batch in rows for part in batch], epoch)
        started = time.perf_counter() - self._seconds
        for batch in rows:
            self._losses.add(self._train_step(epoch, batch, batches))
            self._seconds = time.perf_counter() - started
            if self._losses.is_check_due:
                self._require_finite(epoch)
            yield self._losses.done

    def finish_epoch(self, *, log_shift: bool, evaluated: bool = True) -> None:
        """Appends the metrics of the epoch whose steps are done.

        Args:
            log_shift: measure the shift of each BatchNorm too.
            evaluated: measure top-1 on the test images.

        Raises:
            CheckFailedError: a weight is no longer finite.
        """
        epoch = len(self.metrics) + 1
        self._require_finite_weights(epoch)
        started = time.perf_counter()
        speed, rate = self.images_per_second, self.config.learning_rate * self._rate(self.steps_done - 1)
        # The processes hold slightly different BatchNorm statistics; the first one's are those that are saved.
        self.share.take_buffers_of_first(self._deployed())
        if log_shift:
            self.shift.extend(measure_shift(self._deployed(), self._shift_images(), epoch))
        accuracy = shared_accuracy(self._deployed(), self.data, self.fabric) if evaluated else None
        seconds = self._seconds + time.perf_counter() - started
        metrics = EpochMetrics(epoch, self._losses.mean(), accuracy, seconds, rate, speed)
        self.metrics.append(self.fabric.broadcast(metrics))
        self._losses, self._seconds = EpochLosses(self.steps_per_epoch, self.fabric), 0.0

    def checkpoint(self) -> Checkpoint:
        """The state of the run. In the middle of an epoch all processes call this together."""
        position = None
        if self._losses.done:
            self._require_finite(len(self.metrics) + 1)
            self._require_finite_weights(len(self.metrics) + 1)
            states = self.share.gather(generator_states(self.fabric.device))
            position = EpochPosition(self._losses.so_far(), self._seconds, tuple(states))
        self._kept = self._place()
        return Checkpoint(
            training=self.config,
            preprocessing=self.data.preprocessing,
            model=_state_of(self.module),
            average=None if self.average is None else _state_of(self.average.module),
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            metrics=tuple(self.metrics),
            shift=tuple(self.shift),
            position=position,
        )

    def _prepared(self, module: nn.Module) -> nn.Module:
        """The fresh network in the form in which it is trained here."""
        if self.fabric.device.type == "cuda":
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.config.sync_batch_norm and self.share.is_shared:
            if self.fabric.device.type != "cuda":
                raise InputError("training: torch has synchronised BatchNorm for GPUs only; leave --sync-batchnorm out")
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        if self.config.compiled:
            module.compile()
        return module

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            self.module.load_state_dict(checkpoint.model)
            self.optimizer.load_state_dict(checkpoint.optimizer)
            self.scheduler.load_state_dict(checkpoint.scheduler)
            if self.average is not None and checkpoint.average is not None:
                self.average.module.load_state_dict(checkpoint.average)
                done = len(checkpoint.metrics) * self.steps_per_epoch
                done += 0 if checkpoint.position is None else len(checkpoint.position.losses)
                self.average.n_averaged.fill_(done)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"checkpoint: damaged, can't go on from it ({reason}); pass --force to start again"
            ) from None
        self.metrics, self.shift = list(checkpoint.metrics), list(checkpoint.shift)
        self._position = checkpoint.position
        if self._position is not None:
            self._require_processes(len(self._position.random))
            if len(self._position.losses) >= self.steps_per_epoch:
                raise ModelError(
                    "checkpoint: damaged, its step lies past the end of an epoch; pass --force to start again"
                )
            self._losses = EpochLosses(self.steps_per_epoch, self.fabric, self._position.losses)
            self._seconds = self._position.seconds
        self._kept = self._place()

    def _place(self) -> str:
        """The progress of the run, in words."""
        if not self._losses.done:
            return f"epoch {len(self.metrics)}"
        return f"step {self._losses.done} of epoch {len(self.metrics) + 1}"

    def _require_processes(self, before: int) -> None:
        """Half an epoch of so many processes can't be finished by another number of them."""
        if before != self.share.processes:
            raise InputError(
                f"training: the run was stopped in the middle of an epoch of {before} processes, and goes on with as"
                f" many, not with {self.share.processes}; or pass --force to start again"
            )

    def _begin(self, epoch: int) -> None:
        """Puts the random generators where they belong at this step of the epoch."""
        torch.manual_seed(stream_seed(self.config.seed, Stream.NOISE, epoch, self.share.rank))
        if self._position is None:
            return
        try:
            set_generator_states(self._position.random[self.share.rank], self.fabric.device)
        except (RuntimeError, TypeError, KeyError):
            raise ModelError(
                "checkpoint: the states of its random generators are none, or of another device; go on where the run"
                " was stopped, or pass --force to start again"
            ) from None
        self._position = None

    def _train_step(self, epoch: int, parts: tuple[torch.Tensor, ...], batches: Iterator[torch.Tensor]) -> torch.Tensor:
        """One step of the optimizer; returns the loss before it."""
        seed = stream_seed(self.config.seed, Stream.AUGMENTATION, epoch, self._losses.done)
        draw = draw_augmentation(self.config.augmentation, self.config.batch_size, seed)
        draw = draw.part(self.share.rows)
        total = torch.zeros((), device=self.fabric.device)
        self.stepper.zero_grad()
        first = 0
        for index, rows in enumerate(parts):
            drawn = draw.part(slice(first, first + len(rows)))
            images = augment(next(batches), self.config.augmentation, drawn)
            first += len(rows)
            with self.fabric.no_backward_sync(self.parallel, enabled=self.share.is_shared and index + 1 < len(parts)):
                labels = self.data.labels[rows.to(self.fabric.device)]
                loss = mixed_cross_entropy(self.parallel(images), labels, drawn.share, self.config.label_smoothing)
                loss = loss / len(parts)
                self.fabric.backward(loss)
            total += loss.detach()
        self.stepper.step()
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.module)
        return total

    def _rate(self, step: int) -> float:
        """The learning rate as a share of its peak."""
        return self.config.schedule.at(step, self.config.epochs * self.steps_per_epoch)

    def _deployed(self) -> nn.Module:
        """The module that is evaluated and exported."""
        return self.module if self.average is None else self.average.module

    def _shift_images(self) -> Iterator[torch.Tensor]:
        """Training images for the shift, evenly spaced, the same in each epoch."""
        count = min(SHIFT_IMAGES, len(self.data.labels))
        rows = torch.linspace(0, len(self.data.labels) - 1, count).long()
        return self.data.images.batches(torch.split(rows, EVALUATION_BATCH), 0)

    def _require_finite(self, epoch: int) -> None:
        """Checks the losses so far, those of all processes together."""
        bad = self._losses.find_bad()
        if bad is not None:
            step, loss = bad
            self._fail(f"the loss is {loss:g}", epoch, step)

    def _require_finite_weights(self, epoch: int) -> None:
        """The last step can spoil the weights without a loss that shows it."""
        for name, tensor in self.module.state_dict().items():
            if not torch.isfinite(tensor).all():
                self._fail(f"{name} is no longer finite", epoch, self._losses.done)

    def _fail(self, what: str, epoch: int, step: int) -> None:
        kept = f"the checkpoint of {self._kept} is kept" if self._kept else "nothing was written"
        raise CheckFailedError(
            f"training: {what} in epoch {epoch}, step {step} of {self.steps_per_epoch};"
            f" {kept}, lower the learning rate ({self.config.learning_rate:g})"
        )


def _state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
