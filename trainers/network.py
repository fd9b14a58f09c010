"""A network as plain data, the names of the networks, and what builds the network of a name.

For images of 8x8 pixels on, usually 28x28 to 64x64:

preresnet-<depth>[-basic|-bottleneck]       pre-activation ResNet, any depth of 6n+2 or 9n+2
wrn-<depth>-<widen>                         wide ResNet, 6n+4, as in wrn-28-10
densenet-<depth>-<growth>                   DenseNet-BC, 6n+4, as in densenet-100-12
resnext-<depth>-<cardinality>x<width>d      ResNeXt, 9n+2, as in resnext-29-8x64d
mlp-<layers>                                perceptron with that many hidden layers

For images of 32x32 pixels on, usually 224x224:

resnet-<depth>                              ResNet of 18, 34, 50, 101, 152 or 200 layers
resnext-<depth>-<cardinality>x<width>d      ResNeXt of 50, 101 or 152 layers, as in resnext-50-32x4d
seresnet-<depth>, seresnext-...             the same with squeeze-and-excitation
senet-154                                   SENet-154
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, cast

from torch import nn

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise import NoiseKind

from .densenet import DenseNet, dense_layers_per_block
from .mlp import Mlp
from .noise_sites import NO_NOISE, NoiseSites
from .preactivation import MIN_IMAGE_SIZE, BlockKind, PreResNet, WideResNet, choose_block, wide_blocks_per_stage
from .preprocessing import MOST_PIXELS
from .residual import GROUPED_DEPTHS, MIN_IMAGENET_SIZE, ResNet, ResNetForm, ResNeXt, resnext_blocks_per_stage


@dataclass(frozen=True)
class NetworkConfig:
    """One network, without its weights.

    Attributes:
        model: the name, see the head of this module.
        in_channels: channels of an image.
        image_size: (height, width) of an image in pixels.
        num_classes: outputs.
        noise: what stands where during training.
        width: what the network's usual channels are multiplied by.

    Raises:
        InputError: a value of the wrong type or outside its range, or values that don't go together.
    """

    model: str
    in_channels: int
    image_size: tuple[int, int]
    num_classes: int
    noise: NoiseSites = NO_NOISE
    width: int = 1

    def __post_init__(self) -> None:
        for name in ("in_channels", "num_classes", "width"):
            if not _is_count(getattr(self, name)):
                raise InputError(f"network: {name} must be a whole number of at least 1, not {getattr(self, name)!r}")
        size = self.image_size
        if not isinstance(size, tuple) or len(size) != 2 or not all(map(_is_count, size)):
            raise InputError(f"network: image_size must be a height and a width of at least 1, not {size!r}")
        if math.prod(size) > MOST_PIXELS:
            raise InputError(f"network: image_size is {size}; {MOST_PIXELS:,} pixels are the most")
        if not isinstance(self.noise, NoiseSites):
            raise InputError(f"network: noise must be a NoiseSites, not {self.noise!r}")
        network_builder(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain strings, numbers, lists and None; `from_dict` gives back an equal object."""
        return asdict(self) | {"image_size": list(self.image_size), "noise": self.noise.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """Reads what `to_dict` wrote.

        Raises:
            InputError: a field is missing, unknown, or holds a value of the wrong type or range.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            found = sorted(map(str, values)) if isinstance(values, Mapping) else values
            raise InputError(f"network: the fields must be {', '.join(sorted(names))}; found {found}")
        size = values["image_size"]
        return cls(
            **{
                **values,
                "image_size": tuple(size) if isinstance(size, list) else size,
                "noise": NoiseSites.from_dict(values["noise"]),
            }
        )


def build_network(config: NetworkConfig) -> nn.Module:
    """The network with fresh weights from torch's global generator, on the CPU, in training mode.

    Shapes: (N, in_channels, *image_size) -> (N, num_classes).
    """
    return network_builder(config)()


def _is_count(value: object) -> bool:
    """Whether a value is a whole number of at least 1; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def network_builder(config: NetworkConfig) -> Callable[[], nn.Module]:
    """What builds the network of a configuration.

    Raises:
        InputError: the name, or what goes with it, is wrong.
    """
    family = config.model.partition("-")[0] if isinstance(config.model, str) else None
    if family not in _FAMILIES:
        raise InputError(f"model {config.model!r}: must be {_FORMS}, as in preresnet-20")
    try:
        return _FAMILIES[family](config)
    except InputError as error:
        raise InputError(f"model '{config.model}': {error}") from None


def _preresnet(config: NetworkConfig) -> Callable[[], nn.Module]:
    match = re.fullmatch(r"preresnet-(\d{1,4})(?:-(basic|bottleneck))?", config.model)
    if match is None:
        raise InputError("must be preresnet-<depth>, preresnet-<depth>-basic or preresnet-<depth>-bottleneck")
    depth = int(match[1])
    block = choose_block(depth, cast("BlockKind | None", match[2]))
    _require_image_size(config)
    return partial(PreResNet, depth, config.in_channels, config.num_classes, block=block, **_common(config))


def _wide_resnet(config: NetworkConfig) -> Callable[[], nn.Module]:
    match = re.fullmatch(r"wrn-(\d{1,4})-([1-9]\d{0,2})", config.model)
    if match is None:
        raise InputError("must be wrn-<depth>-<widen> with a widening of 1 to 999, as in wrn-28-10")
    depth, widen = int(match[1]), int(match[2])
    wide_blocks_per_stage(depth)
    _require_image_size(config)
    return partial(WideResNet, depth, widen, config.in_channels, config.num_classes, **_common(config))


def _densenet(config: NetworkConfig) -> Callable[[], nn.Module]:
    match = re.fullmatch(r"densenet-(\d{1,4})-([1-9]\d{0,2})", config.model)
    if match is None:
        raise InputError("must be densenet-<depth>-<growth> with a growth rate of 1 to 999, as in densenet-100-12")
    depth, growth = int(match[1]), int(match[2])
    dense_layers_per_block(depth)
    _require_image_size(config)
    return partial(DenseNet, depth, growth, config.in_channels, config.num_classes, **_common(config))


def _resnext(config: NetworkConfig) -> Callable[[], nn.Module]:
    depth, cardinality, group_width = _grouped("resnext", config.model, "resnext-29-8x64d")
    if depth in GROUPED_DEPTHS:
        return _resnet_of(config, ResNetForm(depth, cardinality, group_width))
    resnext_blocks_per_stage(depth)
    _require_image_size(config)
    return partial(ResNeXt, depth, cardinality, group_width, config.in_channels, config.num_classes, **_common(config))


def _resnet(config: NetworkConfig) -> Callable[[], nn.Module]:
    match = re.fullmatch(r"(?:se)?resnet-(\d{1,4})", config.model)
    if match is None:
        raise InputError("must be resnet-<depth> or seresnet-<depth>")
    return _resnet_of(config, ResNetForm(int(match[1]), attention=config.model.startswith("se")))


def _seresnext(config: NetworkConfig) -> Callable[[], nn.Module]:
    depth, cardinality, group_width = _grouped("seresnext", config.model, "seresnext-50-32x4d")
    return _resnet_of(config, ResNetForm(depth, cardinality, group_width, attention=True))


def _senet(config: NetworkConfig) -> Callable[[], nn.Module]:
    if config.model != "senet-154":
        raise InputError("must be senet-154")
    return _resnet_of(config, ResNetForm(152, 64, 4, attention=True, deep=True))


def _resnet_of(config: NetworkConfig, form: ResNetForm) -> Callable[[], nn.Module]:
    _require_image_size(config, MIN_IMAGENET_SIZE)
    return partial(ResNet, form, config.in_channels, config.num_classes, **_common(config))


def _grouped(family: str, model: str, example: str) -> tuple[int, int, int]:
    """Depth, cardinality and width of a group."""
    match = re.fullmatch(rf"{family}-(\d{{1,4}})-([1-9]\d{{0,2}})x([1-9]\d{{0,2}})d", model)
    if match is None:
        raise InputError(
            f"must be {family}-<depth>-<cardinality>x<width>d with a cardinality and a width of 1 to 999, as in"
            f" {example}"
        )
    return int(match[1]), int(match[2]), int(match[3])


def _mlp(config: NetworkConfig) -> Callable[[], nn.Module]:
    match = re.fullmatch(r"mlp-([1-9]\d{0,2})", config.model)
    if match is None:
        raise InputError("must be mlp-<layers> with 1 to 999 layers")
    for _, noise in config.noise.items():
        if noise.kind is NoiseKind.FEATURE_DROPOUT:
            raise InputError(f"{noise} drops whole channels, and a perceptron has none; take dropout instead")
    height, width = config.image_size
    return partial(Mlp, int(match[1]), config.in_channels * height * width, config.num_classes, **_common(config))


def _common(config: NetworkConfig) -> dict[str, Any]:
    """The arguments that each network takes under the same name."""
    return {"width": config.width, "noise": config.noise}


def _require_image_size(config: NetworkConfig, least: int = MIN_IMAGE_SIZE) -> None:
    """Refuses images that the halvings leave almost nothing of."""
    if min(config.image_size) < least:
        height, width = config.image_size
        raise InputError(f"images must have at least {least}x{least} pixels, not {height}x{width}")


_FAMILIES: Mapping[str, Callable[[NetworkConfig], Callable[[], nn.Module]]] = {
    "preresnet": _preresnet,
    "wrn": _wide_resnet,
    "densenet": _densenet,
    "resnext": _resnext,
    "resnet": _resnet,
    "seresnet": _resnet,
    "seresnext": _seresnext,
    "senet": _senet,
    "mlp": _mlp,
}


_FORMS = (
    "preresnet-<depth>, wrn-<depth>-<widen>, densenet-<depth>-<growth>, resnext-<depth>-<cardinality>x<width>d,"
    " resnet-<depth>, seresnet-<depth>, seresnext-<depth>-<cardinality>x<width>d, senet-154 or mlp-<layers>"
)
