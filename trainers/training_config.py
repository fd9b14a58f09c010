"""Everything that decides what a training run computes, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vsfix.graph_passes.errors import InputError

from .network import NetworkConfig

PRECISIONS = ("auto", "32", "bf16")


@dataclass(frozen=True)
class TrainingConfig:
    """One training run. Two runs of equal configurations on one CPU end in equal weights, bit for bit.

    Attributes:
        data: the data set, as `load_dataset` takes it.
        network: the network to train.
        epochs: passes over the training images.
        batch_size: images in one step, over all devices together; an incomplete last batch is left out.
        learning_rate: the peak of the schedule: a linear warm-up, then half a cosine down to 0.
        momentum: Nesterov momentum, in [0, 1).
        weight_decay: L2 penalty on all parameters.
        warmup: the share of all steps in which the learning rate rises, in [0, 1).
        seed: decides the initial weights, the choice and the order of the images, and the noise.
        samples: how many training images to take after a seeded shuffle; None takes all.
        precision: "32", "bf16" (weights stay float32), or "auto": bf16 on a GPU, 32 on a CPU.

    Raises:
        InputError: a value of the wrong type or outside its range.
    """

    data: str
    network: NetworkConfig
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    seed: int = 0
    samples: int | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.data, str) or not self.data:
            raise InputError(f"training: data must be a name such as digits, not {self.data!r}")
        _require_whole("epochs", self.epochs, 1)
        # BatchNorm needs a variance, so one image is no batch.
        _require_whole("batch_size", self.batch_size, 2)
        _require_whole("seed", self.seed, 0)
        if self.samples is not None:
            _require_whole("samples", self.samples, 2)
        _require_real("learning_rate", self.learning_rate, above=0, below=math.inf)
        _require_real("momentum", self.momentum, least=0, below=1)
        _require_real("weight_decay", self.weight_decay, least=0, below=math.inf)
        _require_real("warmup", self.warmup, least=0, below=1)
        if self.precision not in PRECISIONS:
            raise InputError(f"training: precision {self.precision!r} must be one of {', '.join(PRECISIONS)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain strings, numbers, lists and dicts; `from_dict` gives back an equal object."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"network": self.network.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """Reads what `to_dict` wrote.

        Raises:
            InputError: a field is missing, unknown, or holds a value of the wrong type or range.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            found = sorted(map(str, values)) if isinstance(values, Mapping) else values
            raise InputError(f"training: the fields must be {', '.join(sorted(names))}; found {found}")
        return cls(**{**values, "network": NetworkConfig.from_dict(values["network"])})


def _require_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"training: {name} must be a whole number of at least {least}, not {value!r}")


def _require_real(
    name: str, value: object, *, below: float, least: float = -math.inf, above: float = -math.inf
) -> None:
    # Written so that NaN fails too.
    if not isinstance(value, int | float) or isinstance(value, bool) or not (least <= value < below and value > above):
        bound = f"at least {least:g}" if above == -math.inf else f"above {above:g}"
        raise InputError(f"training: {name} must be a number {bound} and below {below:g}, not {value!r}")
