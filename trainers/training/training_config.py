"""Everything that decides what a training run computes, and nothing else.

The learning rate rises in a linear warm-up, then falls as half a cosine or in steps:

    rate(t) = peak (t + 1) / W                              t < W, the steps of the warm-up
    cosine: peak (1 + cos(pi (t - W) / (T - W))) / 2        W <= t < T, all steps
    step:   peak decay^k                                    k milestones at or before t
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, cast, get_args

from vsfix.graph_passes.errors import InputError
from vsfix.trainers.networks.network import NetworkConfig

from .augmentation import Augmentation

ScheduleKind = Literal["cosine", "step"]
PRECISIONS = ("auto", "32", "bf16")


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a share of its peak.

    Attributes:
        kind: "cosine" or "step".
        warmup: the share of all steps in which the rate rises, in [0, 1).
        milestones: of "step": the shares of all steps at which the rate falls, ascending, in (0, 1).
        decay: of "step": what the rate is multiplied by at each of them, in (0, 1).

    Raises:
        InputError: a value of the wrong type or outside its range.
    """

    kind: ScheduleKind = "cosine"
    warmup: float = 0.05
    milestones: tuple[float, ...] = ()
    decay: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScheduleKind):
            raise InputError(f"training: schedule {self.kind!r} must be one of {', '.join(get_args(ScheduleKind))}")
        if not _is_share(self.warmup) and self.warmup != 0:
            raise InputError(f"training: warmup must be a number of at least 0 and below 1, not {self.warmup!r}")
        shares = self.milestones
        if not isinstance(shares, tuple) or not all(map(_is_share, shares)) or list(shares) != sorted(set(shares)):
            raise InputError(f"training: milestones must be ascending numbers between 0 and 1, not {shares!r}")
        if (self.kind == "step") != bool(shares):
            raise InputError("training: milestones and the schedule 'step' need each other")
        if not _is_share(self.decay):
            raise InputError(f"training: decay must be a number between 0 and 1, not {self.decay!r}")

    @classmethod
    def parse(cls, text: str, warmup: float) -> Schedule:
        """Reads `cosine`, or `step:SHARE,...[:DECAY]` as in `step:0.5,0.75` or `step:0.3,0.6,0.8:0.2`.

        Raises:
            InputError: another form, or a value outside its range.
        """
        kind, _, rest = text.partition(":")
        shares, _, decay = rest.partition(":")
        try:
            milestones = tuple(float(share) for share in shares.split(",")) if shares else ()
            return cls(cast("ScheduleKind", kind), warmup, milestones, float(decay) if decay else 0.1)
        except ValueError:
            raise InputError(f"schedule '{text}': write cosine, or step:SHARE,... as in step:0.5,0.75") from None

    def at(self, step: int, steps: int) -> float:
        """The share at a step, counted from 0, of `steps` in all; shares of steps are rounded down to whole ones."""
        warmup = int(self.warmup * steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.kind == "cosine":
            return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
        return float(self.decay ** bisect_right([int(share * steps) for share in self.milestones], step))


def _is_share(value: object) -> bool:
    """Whether a value is a number between 0 and 1, neither of them."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1


_Part = TypeVar("_Part", Augmentation, Schedule)


@dataclass(frozen=True)
class TrainingConfig:
    """One training run. Two runs of equal configurations on one CPU end in equal weights, bit for bit.

    Attributes:
        data: the data set, as `load_dataset` takes it.
        network: the network to train.
        epochs: passes over the training images.
        batch_size: images in one step, over all devices together; an incomplete last batch is left out.
        accumulate: in how many parts a device takes its share of a batch, one after another; the gradients are summed
            up, each BatchNorm sees one part at a time.
        learning_rate: the peak of the schedule.
        schedule: how the learning rate moves.
        momentum: of SGD, in [0, 1).
        nesterov: whether it is Nesterov's.
        weight_decay: L2 penalty on all parameters.
        label_smoothing: the share of the target that is distributed over all classes, in [0, 1).
        average: the decay of the exponential moving average of weights and statistics that is evaluated and exported
            instead of the last ones, in [0, 1); 0 for none.
        augmentation: what is done to the training images.
        sync_batch_norm: whether BatchNorm normalises with the statistics of all GPUs together.
        compiled: whether the network runs through torch.compile.
        seed: decides the initial weights, the choice and the order of the images, the augmentation and the noise.
        samples: how many training images to take after a seeded shuffle; None takes all.
        precision: "32", "bf16" (weights stay float32), or "auto": bf16 on a GPU, 32 on a CPU.

    Raises:
        InputError: a value of the wrong type or outside its range.
    """

    data: str
    network: NetworkConfig
    epochs: int = 10
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 0.1
    schedule: Schedule = field(default_factory=Schedule)
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    average: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    sync_batch_norm: bool = False
    compiled: bool = False
    seed: int = 0
    samples: int | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.data, str) or not self.data:
            raise InputError(f"training: data must be a name such as digits, not {self.data!r}")
        _require_whole("epochs", self.epochs, 1)
        # BatchNorm needs a variance, so one image is no batch.
        _require_whole("batch_size", self.batch_size, 2)
        _require_whole("accumulate", self.accumulate, 1)
        _require_whole("seed", self.seed, 0)
        if self.samples is not None:
            _require_whole("samples", self.samples, 2)
        _require_real("learning_rate", self.learning_rate, above=0, below=math.inf)
        _require_real("weight_decay", self.weight_decay, least=0, below=math.inf)
        for name in ("momentum", "label_smoothing", "average"):
            _require_real(name, getattr(self, name), least=0, below=1)
        for name in ("nesterov", "sync_batch_norm", "compiled"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"training: {name} must be true or false, not {getattr(self, name)!r}")
        for name in ("crop", "cutout"):
            pixels, (height, width) = getattr(self.augmentation, name), self.network.image_size
            if pixels >= min(height, width):
                raise InputError(f"training: {name}:{pixels} leaves nothing of an image of {height}x{width}")
        if self.precision not in PRECISIONS:
            raise InputError(f"training: precision {self.precision!r} must be one of {', '.join(PRECISIONS)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain strings, numbers, lists and dicts; `from_dict` gives back an equal object."""
        parts = {
            "network": self.network.to_dict(),
            "schedule": asdict(self.schedule) | {"milestones": list(self.schedule.milestones)},
            "augmentation": asdict(self.augmentation),
        }
        return {entry.name: getattr(self, entry.name) for entry in fields(self)} | parts

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """Reads what `to_dict` wrote.

        Raises:
            InputError: a field is missing, unknown, or holds a value of the wrong type or range.
        """
        _require_fields("training", cls, values)
        parts = {
            "network": NetworkConfig.from_dict(values["network"]),
            "schedule": _part(Schedule, "schedule", values["schedule"]),
            "augmentation": _part(Augmentation, "augmentation", values["augmentation"]),
        }
        return cls(**{**values, **parts})


def _part(kind: Callable[..., _Part], name: str, values: Any) -> _Part:
    """A dataclass of plain values; a list of JSON becomes a tuple."""
    _require_fields(f"training: {name}", kind, values)
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _require_fields(what: str, kind: Any, values: object) -> None:
    names = {entry.name for entry in fields(kind)}
    if not isinstance(values, Mapping) or set(values) != names:
        found = sorted(map(str, values)) if isinstance(values, Mapping) else values
        raise InputError(f"{what}: the fields must be {', '.join(sorted(names))}; found {found}")


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
