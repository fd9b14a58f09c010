"""The names of the networks, and what builds the network of a name.

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

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise import NoiseKind

from .densenet import DenseNet, dense_layers_per_block
from .mlp import Mlp
from .preactivation import BlockKind
from .preresnet import MIN_IMAGE_SIZE, PreResNet, choose_block
from .resnet import GROUPED_DEPTHS, MIN_IMAGENET_SIZE, ResNet, ResNetForm
from .resnext import ResNeXt, resnext_blocks_per_stage
from .wide_resnet import WideResNet, wide_blocks_per_stage

if TYPE_CHECKING:
    from .network import NetworkConfig


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
