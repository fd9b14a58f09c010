"""Free parameters of an ONNX graph, refined by gradient until its outputs, with the noise off, are what they should be.

    p(theta) = start + unit theta          theta starts at 0; Adam, its step falling to 0 as half a cosine
    loss     = sum over outputs of the mean over samples and positions of D(t, y)

D is that of `refinement_target`. A part of the samples is never stepped on: after every ten steps the
loss on it is taken, and the parameters that had the lowest are the result. The start is among them.

Source of the idea, a noisy ensemble distilled into one pass: Bulo, Porzi, Kontschieder, "Dropout distillation", ICML
2016. Adam: Kingma, Ba, ICLR 2015, arXiv 1412.6980.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch

from vsfix.graph_passes.errors import InputError, ModelError
from vsfix.graph_passes.ir.runtime import Array, Float64Array
from vsfix.graph_passes.progress import stage

from .onnx_call import UnsupportedOperatorError
from .refinement_samples import SampledNetwork, Samples, Tensors
from .refinement_target import Target, divergence

_EVALUATE_EVERY = 10  # steps
_LEAST_GAIN = 1e-9  # of the loss, in nats or in units of the noise: what is less than that is rounding


@dataclass(frozen=True)
class RefinementConfig:
    """The configuration of a refinement.

    Attributes:
        steps: of Adam.
        learning_rate: of its first step, in the units of the parameters.
        batch_size: samples of a step; all there are where they are fewer.
        seed: of the order of the samples; the same seed gives the same bits.
        held_out: the part of the samples that only chooses the step, up to a half: every third of them for 1/3.
        run_size: samples of one run forward and back, whose gradients add up to that of the step; None for all of them.

    Raises:
        InputError: a number is out of range.
    """

    steps: int = 100
    learning_rate: float = 5e-3
    batch_size: int = 64
    seed: int = 0
    held_out: float = 1 / 3
    run_size: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"refinement: {self.steps} steps; take at least 1")
        if min(self.batch_size, self.run_size or 1) < 1:
            raise InputError(f"refinement: {self.batch_size} samples a step, {self.run_size} a run; take at least 1")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InputError(f"refinement: the learning rate must be above 0, not {self.learning_rate}")
        if self.seed < 0:
            raise InputError(f"refinement: the seed must be 0 or more, not {self.seed}")
        if not 0 < self.held_out <= 0.5:
            raise InputError(f"refinement: the held-out part must be above 0 and at most 0.5, not {self.held_out}")


@dataclass(frozen=True)
class Refinement:
    """The parameters that were found.

    Attributes:
        values: of each free parameter, by its name, in its shape.
        losses: on the held-out samples: at the start, after every tenth step and after the last one.
        step: the step that gave the values; 0 is the start.
    """

    values: dict[str, Float64Array]
    losses: tuple[float, ...]
    step: int


def refine(
    model: onnx.ModelProto,
    free: Mapping[str, Array],
    inputs: Mapping[str, Array],
    targets: Mapping[str, Target],
    config: RefinementConfig | None = None,
) -> Refinement:
    """Changes free parameters until the outputs of a model come as near to their targets as they can.

    Args:
        model: in inference form; evaluated with its noise off and its stored statistics. Not changed.
        free: names of initializers that may change, each with the unit in which it is changed, of its shape.
        inputs: by name, the samples first, N of them and at least 2, in an order that says nothing; what has no axis is
            the same for all of them.
        targets: by the name of the output; outputs without one don't count.
        config: how.

    Raises:
        UnsupportedOperatorError: the graph can't be differentiated; names node and operator.
        InputError: a free parameter or a target that does not fit the model.
        DataError: samples that don't fit it.
        ModelError: the loss is not finite.
    """
    config = config or RefinementConfig()
    if not free or not targets:
        raise InputError("nothing to refine: a free parameter and a target are needed")
    unknown = sorted(targets.keys() - {tensor.name for tensor in model.graph.output})
    if unknown:
        raise InputError(f"'{unknown[0]}' is no output of the model")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    missing = sorted(free.keys() - stored.keys())
    if missing:
        raise InputError(f"'{missing[0]}' is no initializer of the model")
    starts = {name: np.asarray(onnx.numpy_helper.to_array(stored[name])).astype(np.float64) for name in free}
    samples = Samples(inputs, {name: target.mean for name, target in targets.items()})
    return refine_network(SampledNetwork(model, free.keys(), samples), starts, free, samples, targets, config)


def refine_network(
    network: Callable[[Tensors, Tensors], Tensors],
    starts: Mapping[str, Array],
    units: Mapping[str, Array],
    samples: Samples,
    targets: Mapping[str, Target],
    config: RefinementConfig,
) -> Refinement:
    """`refine` of anything that can be differentiated.

    Args:
        network: the outputs by name, from the inputs of some samples and from the free parameters, float64.
        starts: of each free parameter.
        units: in which each is changed, of the same shape.
        samples: the inputs, and the means of the targets.
        targets: by the name of the output.
        config: how.

    Raises:
        InputError: a unit that does not fit its parameter, or no gradient.
        ModelError: the loss is not finite.
    """
    parameters = _Parameters(starts, units)
    steps, held_out = _split(len(samples), config.held_out)

    def loss_of(rows: Array) -> torch.Tensor:
        means = samples.means_at(rows)
        outputs = network(samples.inputs_at(rows), parameters())
        return torch.stack([divergence(outputs[name], targets[name], mean) for name, mean in means.items()]).sum()

    def held_out_loss() -> float:
        with torch.no_grad():
            parts = [float(loss_of(rows)) * len(rows) for rows in _runs(held_out, config)]
        return _finite(sum(parts) / len(held_out))

    with stage("refining end to end", config.steps) as refining:
        return _descend(parameters, loss_of, held_out_loss, _draw_batches(steps, config), config, refining.step)


def _descend(
    parameters: _Parameters,
    loss_of: Callable[[Array], torch.Tensor],
    held_out_loss: Callable[[], float],
    batches: Array,
    config: RefinementConfig,
    on_step: Callable[[], None],
) -> Refinement:
    """Steps over the batches, and keeps the best of the steps that are looked at."""
    optimizer = torch.optim.Adam(parameters.thetas, config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    losses = [held_out_loss()]
    best, values, best_step = losses[0], parameters.values(), 0
    for step, rows in enumerate(batches, 1):
        optimizer.zero_grad()
        for run in _runs(rows, config):
            with torch.enable_grad():
                loss = loss_of(run) * (len(run) / len(rows))
                _finite(float(loss.detach()))
                if not loss.requires_grad:
                    raise UnsupportedOperatorError("no gradient of any output reaches the free parameters")
                loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        on_step()
        if step % _EVALUATE_EVERY and step != config.steps:
            continue
        losses.append(held_out_loss())
        if losses[-1] < best - _LEAST_GAIN:
            best, values, best_step = losses[-1], parameters.values(), step
    return Refinement(values, tuple(losses), best_step)


class _Parameters:
    """The free parameters as a function of theta; in the order of their names, so that their given order is nothing."""

    def __init__(self, starts: Mapping[str, Array], units: Mapping[str, Array]) -> None:
        self._starts: dict[str, torch.Tensor] = {}
        self._units: dict[str, torch.Tensor] = {}
        for name in sorted(units):
            start, unit = starts[name], np.asarray(units[name], dtype=np.float64)
            if unit.shape != start.shape or not np.isfinite(unit).all():
                raise InputError(f"the unit of '{name}' must be finite and of shape {start.shape}, not {unit.shape}")
            self._starts[name], self._units[name] = torch.tensor(start), torch.tensor(unit)
        self._thetas = {name: torch.zeros_like(start, requires_grad=True) for name, start in self._starts.items()}
        self._order = tuple(units)

    @property
    def thetas(self) -> list[torch.Tensor]:
        """The tensors that a gradient may change."""
        return list(self._thetas.values())

    def __call__(self) -> dict[str, torch.Tensor]:
        """start + unit theta, differentiable."""
        return {name: self._starts[name] + self._units[name] * theta for name, theta in self._thetas.items()}

    def values(self) -> dict[str, Float64Array]:
        """The values as arrays, in the order in which they were asked for."""
        with torch.no_grad():
            now = self()
        return {name: now[name].numpy() for name in self._order}


def _split(count: int, held_out: float) -> tuple[Array, Array]:
    """The samples to step on, and every third (of a third) that is held out; the last one where there are too few."""
    every = round(1 / held_out)
    rows = np.arange(count)
    chosen = rows % every == every - 1
    if not chosen.any():
        chosen[-1] = True
    return rows[~chosen], rows[chosen]


def _draw_batches(rows: Array, config: RefinementConfig) -> Array:
    """The samples of each step, (steps, batch): every sample comes once before any comes again."""
    size = min(config.batch_size, len(rows))
    rng = np.random.default_rng(config.seed)
    passes = math.ceil(config.steps * size / len(rows))
    order = np.concatenate([rng.permutation(rows) for _ in range(passes)])
    return order[: config.steps * size].reshape(config.steps, size)


def _runs(rows: Array, config: RefinementConfig) -> list[Array]:
    """Samples that are run one part after the other."""
    size = min(config.batch_size, config.run_size or config.batch_size)
    return np.split(rows, range(size, len(rows), size))


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise ModelError("the refinement failed: the loss is not finite")
    return loss
