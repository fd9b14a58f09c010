"""The targets of the outputs of a network, and their distance from them, differentiable.

    output y                       target t                                    D(t, y)
    scores of classes              mean of the softmax under the noise         KL(t || q) = sum_c t_c log(t_c / q_c)
    independent probabilities      mean of the probabilities under the noise   the same for each and its complement
    directions                     mean under the noise, of length 1           the same of y / |y|
    values                         mean under the noise                        (y - t)^2 / s2, s2 their noise variance

The divergence is 0 where the output is its target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.noise_average.divergence import Meaning
from vsfix.graph_passes.noise_average.severity import Reference

_FEW = 4096  # numbers of an output, for one sample
_TINY = 1e-12  # of a probability
_ROUNDING = 1e-3  # of a probability, in half precision
_SQUARED = tuple(meaning.value for meaning in Meaning if meaning.is_squared)


@dataclass(frozen=True)
class Target:
    """The target of one output of the graph, for every sample.

    Attributes:
        kind: what the output is: `logits` (scores of classes before the softmax), `softmax` (probabilities that sum to
            1), `log-softmax` (their logarithms), `probabilities` (independent of each other, as of a sigmoid),
            `sigmoid-logits` (before the sigmoid), `directions` (N, C), or `values`.
        axis: of the classes; of no meaning for the last four kinds.
        mean: over the passes with the noise on, in the shape of the output, (N, ...), or (N rows, ...) where a sample
            has several rows, which are adjacent; of probabilities for the first five kinds. Where positions are
            chosen, (N, P), and (N, P, classes) of scores of classes.
        variance: of `values` and `directions`: s2, the mean noise variance of the output.
        chosen: the P positions of a sample that count, numbered through its rows and all axes but that of the classes;
            None for all.

    Raises:
        InputError: another kind, an axis that is not there, a mean that is none of probabilities, or a variance that is
            not above 0.
    """

    kind: str
    axis: int
    mean: Array
    variance: float = 1.0
    chosen: Array | None = None

    def __post_init__(self) -> None:
        if self.kind not in _DIVERGENCES:
            raise InputError(f"the kind of a target: '{self.kind}' is none of {', '.join(_DIVERGENCES)}")
        rank = self.mean.ndim
        is_there = 0 < self.axis < rank or -rank < self.axis < 0 or (self.chosen is not None and self.axis != 0)
        if rank < 1 or (self.kind in _OF_CLASSES and not is_there):
            raise InputError(f"the classes of a target can't be on axis {self.axis} of shape {self.mean.shape}")
        if self.kind not in _SQUARED and (np.any(self.mean < -_ROUNDING) or np.any(self.mean > 1 + _ROUNDING)):
            raise InputError(f"the mean of a target of kind '{self.kind}' must be of probabilities")
        if not (self.variance > 0 and math.isfinite(self.variance)):
            raise InputError(f"the noise variance of a target must be above 0, not {self.variance}")


def output_targets(reference: Reference, outputs: Mapping[str, Array]) -> dict[str, Target]:
    """The targets of every output of F that is compared, by name.

    Args:
        reference: F.
        outputs: of the network over all samples, whose shapes the targets have.
    """
    return {name: _output_target(reference, name, outputs[name].shape) for name in reference.outputs}


def _output_target(reference: Reference, name: str, shape: Sequence[int]) -> Target:
    """The target of one output, at the positions that are compared."""
    noisy, chosen = reference.outputs[name], reference.readers[name].chosen
    meaning, axis, mean = noisy.kind.meaning, noisy.kind.axis, noisy.mean.astype(np.float32)
    forms = {"logits": "logits", "probabilities": "softmax", "log": "log-softmax"}
    if meaning is Meaning.CLASSES:
        kind = forms[noisy.kind.form]
    elif meaning is Meaning.PROBABILITIES:
        kind = "sigmoid-logits" if noisy.kind.form == "logits" else "probabilities"
    else:
        kind = meaning.value
    variance = noisy.noise_variance if kind in _SQUARED else 1.0
    if chosen is not None:
        return Target(kind, axis, mean if meaning is Meaning.CLASSES else mean[..., 0], variance, chosen)
    if meaning is not Meaning.CLASSES:
        return Target(kind, axis, mean.reshape(shape), variance)
    last = np.moveaxis(np.empty(shape, dtype=np.bool_), axis, -1).shape
    return Target(kind, axis, np.ascontiguousarray(np.moveaxis(mean.reshape(last), -1, axis)), variance)


def divergence(output: torch.Tensor, target: Target, mean: torch.Tensor) -> torch.Tensor:
    """D of an output from its target, the mean over samples and positions, a float64 scalar.

    It is computed in float64 where a sample has few numbers, else in the precision of the output.

    Args:
        output: of some samples, (n, ...), or (n rows, ...).
        target: the kind, the axis, the variance, and the positions that count.
        mean: of the target, of the same samples: of the same shape, or of its chosen positions.

    Raises:
        DataError: the two have different shapes.
    """
    axis = target.axis
    if target.chosen is not None:
        output, axis = _at_chosen(output, target, len(mean)), -1
    if output.shape != mean.shape:
        raise DataError(f"an output of shape {tuple(output.shape)} has a target of shape {tuple(mean.shape)}")
    if output.numel() <= _FEW * len(output):
        output = output.double()
    elif output.dtype in (torch.float16, torch.bfloat16):
        output = output.float()
    each = _DIVERGENCES[target.kind](output, mean.to(output.dtype), axis)
    return each.mean(dtype=torch.float64) / (target.variance if target.kind in _SQUARED else 1.0)


def _at_chosen(output: torch.Tensor, target: Target, samples: int) -> torch.Tensor:
    """The positions of an output that count, (n, P), or (n, P, classes)."""
    assert target.chosen is not None
    axis = target.axis % output.dim() if target.kind in _OF_CLASSES else output.dim()
    classes = output.shape[axis] if axis < output.dim() else 1
    positions = math.prod(output.shape[axis + 1 :])
    last = int(target.chosen.max(initial=0))
    if len(output) % samples or last * samples >= output.numel() // classes:
        raise DataError(f"an output of shape {tuple(output.shape)} has no position {last} of {samples} samples")
    chosen = torch.from_numpy(target.chosen)
    if positions == 1:
        found = output.reshape(samples, -1, classes).index_select(1, chosen)
    else:  # nothing is copied whole where the axis of the classes comes before all positions
        by_class = output.reshape(samples, -1, classes, positions).transpose(1, 2).reshape(samples, classes, -1)
        found = by_class.gather(2, chosen.expand(samples, classes, -1)).transpose(1, 2)
    return found if target.kind in _OF_CLASSES else found.squeeze(-1)


def _of_classes(log_q: Callable[[torch.Tensor, int], torch.Tensor]) -> _Divergence:
    """KL(t || q), given how log q follows from the output."""

    def evaluate(output: torch.Tensor, mean: torch.Tensor, axis: int) -> torch.Tensor:
        t = mean.clamp(min=0)
        crossed = torch.where(t > 0, t * log_q(output, axis), 0.0)  # 0 too where a class is masked: log q = -inf
        return (torch.xlogy(t, t) - crossed).sum(axis)

    return evaluate


def _of_probabilities(log_chances: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> _Divergence:
    """The KL divergence of each probability and its complement, given how their logarithms follow from the output."""

    def evaluate(output: torch.Tensor, mean: torch.Tensor, axis: int) -> torch.Tensor:
        log_q, log_not_q = log_chances(output)
        t = mean.clamp(0, 1)
        rest = 1 - t
        return torch.xlogy(t, t) + torch.xlogy(rest, rest) - t * log_q - rest * log_not_q

    return evaluate


def _of_values(output: torch.Tensor, mean: torch.Tensor, axis: int) -> torch.Tensor:
    return (output - mean).square()


def _of_directions(output: torch.Tensor, mean: torch.Tensor, axis: int) -> torch.Tensor:
    return (functional.normalize(output, dim=-1) - mean).square()


def _log(q: torch.Tensor) -> torch.Tensor:
    return q.clamp(min=_TINY).log()


_Divergence = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
_OF_CLASSES: Mapping[str, _Divergence] = {
    "logits": _of_classes(lambda y, axis: torch.log_softmax(y, axis)),
    "softmax": _of_classes(lambda y, axis: _log(y)),
    "log-softmax": _of_classes(lambda y, axis: y.clamp(min=math.log(_TINY))),
}
_DIVERGENCES: Mapping[str, _Divergence] = {
    **_OF_CLASSES,
    "probabilities": _of_probabilities(lambda y: (_log(y), _log(1 - y))),
    "sigmoid-logits": _of_probabilities(lambda y: (functional.logsigmoid(y), functional.logsigmoid(-y))),
    "directions": _of_directions,
    "values": _of_values,
}
