"""Inputs made from the model alone, for a repair without data.

The stored statistics of every BN say what the network saw in training, with its noise on. Inputs whose own statistics,
with the noise on, equal the stored ones at every BN look to the network like its training data. They are found by
gradient on the parameters of `ImagePrior`, under fresh draws of the noise in every step:

    loss = sum over BNs of mean over channels of  log(1 + d^2 + l^2)
    d = (mean_batch - mean) / sqrt(var + epsilon),    l = log((var_batch + epsilon) / (var + epsilon))

The logarithm bounds the pull of a single channel: one that is seldom active has no variance at all in a few dozen
inputs, whatever they are, and the others would be bent to give it some.

Every BN normalises with the statistics of the batch, as it did in training: so each BN's own loss counts, and not that
of the BNs upstream of it. With the noise off the loss would find inputs that hold the variance of the noise themselves,
and nothing would be left to repair.

The idea of inputs that match BN statistics: Yin et al., "Dreaming to Distill", CVPR 2020, arXiv 1912.08795; Cai et al.,
"ZeroQ", CVPR 2020, arXiv 2001.00281. That the noise must be on is what variance shift adds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch

from vsfix.graph_passes.errors import InputError, ModelError
from vsfix.graph_passes.io.model_file import read_metadata
from vsfix.graph_passes.progress import stage
from vsfix.trainers.data.preprocessing import METADATA_KEY, Preprocessing

from .image_prior import ImagePrior, PixelRange
from .onnx_evaluation import BatchMoments, Evaluation, OnnxModule

_INPUTS = (64, 256)  # the fewest and the most that are taken where nobody says how many
_VALUES_PER_CHANNEL = 1024
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})
_NUMPY_TYPES = {onnx.TensorProto.FLOAT16: np.float16, onnx.TensorProto.DOUBLE: np.float64}


@dataclass(frozen=True)
class SyntheticConfig:
    """The configuration of a search for inputs.

    Attributes:
        inputs: how many, at least 2; None takes 64, and up to 256 where a BN has few positions, so that each sees about
            1,000 values per channel.
        steps: of Adam.
        learning_rate: of its first step; it falls to 0 as half a cosine.
        seed: of the start and of the noise; the same seed gives the same bits.
        input_shape: of one input, without the batch; None takes what the model says.

    Raises:
        InputError: a number is out of range.
    """

    inputs: int | None = None
    steps: int = 100
    learning_rate: float = 0.4
    seed: int = 0
    input_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.inputs is not None and self.inputs < 2:
            raise InputError(f"synthetic inputs: {self.inputs} of them have no variance; take at least 2")
        if self.steps < 1:
            raise InputError(f"synthetic inputs: {self.steps} steps; take at least 1")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InputError(f"synthetic inputs: the learning rate must be above 0, not {self.learning_rate}")


@dataclass(frozen=True)
class SyntheticInputs:
    """The inputs that were found.

    Attributes:
        inputs: by the name of the graph's input, batch first, in the shape and type that the model takes.
        losses: before each step, under the noise of that step.
        matching_loss: of each BN, by its name, at the end and under noise that no step has seen.
    """

    inputs: dict[str, npt.NDArray[np.floating]]
    losses: tuple[float, ...]
    matching_loss: dict[str, float]

    @property
    def total_loss(self) -> float:
        """The loss of the inputs under noise that no step has seen."""
        return sum(self.matching_loss.values())


def synthesize_inputs(model: onnx.ModelProto, config: SyntheticConfig | None = None) -> SyntheticInputs:
    """Finds inputs that look to the network like its training data.

    Args:
        model: with its BNs and its noise markers; the main graph's inputs must be floating point. Not changed.
        config: how many inputs, and how many steps.

    Raises:
        UnsupportedOperatorError: the graph can't be differentiated; names node and operator.
        ModelError: the model has no BN, or fails on inputs of the shape.
        InputError: an input is no floating point tensor, or its shape isn't known.
    """
    config = config or SyntheticConfig()
    module = OnnxModule(model)
    if not module.batch_norms:
        raise ModelError("the model has no BatchNorm, so nothing in it says what its training data were")
    generator = torch.Generator().manual_seed(config.seed)
    shapes = _input_shapes(model, config.input_shape)
    count = config.inputs or _enough_inputs(module, shapes)
    priors = {
        name: ImagePrior((count, *shape), _pixel_range(model, shape), generator) for name, shape in shapes.items()
    }
    match = _Match(module, np.random.default_rng(config.seed))
    losses = _descend(priors, match, config)
    with torch.no_grad():
        images = {name: prior.images() for name, prior in priors.items()}
        left = {name: float(value) for name, value in match(images).items()}
    if not all(math.isfinite(value) for value in (*losses, *left.values())):
        raise ModelError(
            "the search for synthetic inputs diverged: the model gives values that are not finite; give data instead"
        )
    types = {tensor.name: tensor.type.tensor_type.elem_type for tensor in model.graph.input}
    arrays = {name: x.numpy().astype(_NUMPY_TYPES.get(types[name], np.float32)) for name, x in images.items()}
    return SyntheticInputs(arrays, tuple(losses), left)


def _descend(priors: Mapping[str, ImagePrior], match: _Match, config: SyntheticConfig) -> list[float]:
    """Changes the priors step by step; returns the loss before each."""
    optimizer = torch.optim.Adam([one for prior in priors.values() for one in prior.parameters], config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    losses: list[float] = []
    with torch.enable_grad(), stage("making inputs from the model", config.steps) as making:
        for _ in range(config.steps):
            making.step()
            loss = torch.stack(list(match({name: prior.images() for name, prior in priors.items()}).values())).sum()
            losses.append(float(loss.detach()))
            if not loss.requires_grad:
                raise ModelError(
                    "no gradient of any BN reaches the inputs of the model; give calibration data with --data"
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return losses


class _Match:
    """The distance of inputs from what each BN stores, with the noise on."""

    def __init__(self, module: OnnxModule, rng: np.random.Generator) -> None:
        self._module = module
        self._rng = rng
        self._stored = {
            batch_norm.name: (torch.from_numpy(batch_norm.mean).float(), torch.from_numpy(batch_norm.variance).float())
            for batch_norm in module.batch_norms
        }

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The matching loss of each BN, by its name."""
        evaluation = self._module(inputs, statistics="batch", noise=self._rng, until=self._stored)
        return {
            batch_norm.name: matching_loss(
                evaluation.batch_norms[batch_norm.name], *self._stored[batch_norm.name], batch_norm.epsilon
            )
            for batch_norm in self._module.batch_norms
        }


def matching_loss(found: BatchMoments, mean: torch.Tensor, variance: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Mean over the channels of log(1 + d^2 + l^2), a scalar.

    Args:
        found: of a batch, (C,).
        mean: stored, (C,).
        variance: stored, (C,).
        epsilon: of the BN, which can't tell variances far below it apart.
    """
    d = (found.mean - mean) * torch.rsqrt(variance + epsilon)
    log_ratio = torch.log((found.variance + epsilon) / (variance + epsilon))
    return torch.log1p(d.square() + log_ratio.square()).mean()


def _input_shapes(model: onnx.ModelProto, given: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    """The shape of one input, without the batch, by the name of the graph's input."""
    constants = {tensor.name for tensor in model.graph.initializer}
    tensors = [tensor for tensor in model.graph.input if tensor.name not in constants]
    if given is not None and len(tensors) > 1:
        raise InputError(f"the model has {len(tensors)} inputs, and one input shape can't be that of all of them")
    return {tensor.name: _input_shape(tensor, given) for tensor in tensors}


def _input_shape(tensor: onnx.ValueInfoProto, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """(C, *positions): what is given, or else what the model says."""
    kind = tensor.type.tensor_type
    if kind.elem_type not in _FLOATS:
        raise InputError(
            f"input '{tensor.name}' is not floating point, so no gradient reaches it; give calibration data with --data"
        )
    shape = given or tuple(side.dim_value for side in kind.shape.dim[1:])  # 0 where a side is not known
    if not shape or min(shape) < 1:
        raise InputError(f"the model doesn't say how large its input '{tensor.name}' is; give it with --input-shape")
    return shape


def _enough_inputs(module: OnnxModule, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """So many that each BN sees enough values per channel, within bounds."""
    with torch.no_grad():
        two = {name: torch.zeros(2, *shape) for name, shape in shapes.items()}
        evaluation: Evaluation = module(two, until=[batch_norm.name for batch_norm in module.batch_norms])
    positions = min(moments.count for moments in evaluation.batch_norms.values()) / 2
    return min(max(math.ceil(_VALUES_PER_CHANNEL / positions), _INPUTS[0]), _INPUTS[1])


def _pixel_range(model: onnx.ModelProto, shape: tuple[int, ...]) -> PixelRange | None:
    """The range of the pixels of real images, (C, h, w), after the preprocessing that the file describes."""
    text = read_metadata(model).get(METADATA_KEY)
    if text is None:
        return None
    preprocessing = Preprocessing.from_json(text)
    if len(shape) != 3 or shape[0] != preprocessing.channels:
        return None
    mean, deviation = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return PixelRange((0 - mean) / deviation, (1 - mean) / deviation)
