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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, cast

from torch import nn

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import NoiseKind
from vsfix.trainers.data.datasets import DEFAULT_SIZE, load_dataset
from vsfix.trainers.data.preprocessing import MOST_PIXELS
from vsfix.trainers.layers.noise_sites import NO_NOISE, NoiseSites, Site

from .densenet import DenseNet, dense_layers_per_block
from .mlp import Mlp
from .preactivation import MIN_IMAGE_SIZE, BlockKind, PreResNet, WideResNet, choose_block, wide_blocks_per_stage
from .residual import GROUPED_DEPTHS, MIN_IMAGENET_SIZE, ResNet, ResNetForm, ResNeXt, resnext_blocks_per_stage


@dataclass(frozen=True)
class NetworkConfig:
    """One network, without its weights.

    Attributes:
        model: the name, see the head of this module.
        in_channels: channels of an image.
        image_size: (height, width) of an image in pixels.
        num_classes: outputs.
        noise: of each site, in training.
        width: the factor on the network's usual channels.

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
    """The function that builds the network of a configuration.

    Raises:
        InputError: the name, or what goes with it, is wrong.
    """
    family, _, numbers = config.model.partition("-") if isinstance(config.model, str) else ("", "", "")
    if family not in _FAMILIES:
        forms = ", ".join(f"{name}-{wanted.partition('[')[0]}" for name, (_, wanted, _) in _FAMILIES.items())
        raise InputError(f"model {config.model!r}: must be {forms}, as in preresnet-20")
    form, wanted, choose = _FAMILIES[family]
    match = re.fullmatch(form, numbers)
    try:
        if match is None:
            raise InputError(f"must be {family}-{wanted}, with whole numbers from 1 on, below 1000 but for the depth")
        return choose(config, *(int(part) if part and part.isdigit() else part for part in match.groups()))
    except InputError as error:
        raise InputError(f"model '{config.model}': {error}") from None


def _preresnet(config: NetworkConfig, depth: int, block: BlockKind | None) -> Callable[[], nn.Module]:
    return _for_images(config, PreResNet, depth, block=choose_block(depth, block))


def _wide_resnet(config: NetworkConfig, depth: int, widen: int) -> Callable[[], nn.Module]:
    wide_blocks_per_stage(depth)
    return _for_images(config, WideResNet, depth, widen)


def _densenet(config: NetworkConfig, depth: int, growth: int) -> Callable[[], nn.Module]:
    dense_layers_per_block(depth)
    return _for_images(config, DenseNet, depth, growth)


def _resnext(config: NetworkConfig, depth: int, cardinality: int, width: int) -> Callable[[], nn.Module]:
    if depth in GROUPED_DEPTHS:
        return _resnet(config, depth, cardinality, width)
    resnext_blocks_per_stage(depth)
    return _for_images(config, ResNeXt, depth, cardinality, width)


def _resnet(config: NetworkConfig, *numbers: Any, **options: Any) -> Callable[[], nn.Module]:
    return _for_images(config, ResNet, ResNetForm(*numbers, **options), least=MIN_IMAGENET_SIZE)


def _for_images(
    config: NetworkConfig, network: Callable[..., nn.Module], *numbers: Any, least: int = MIN_IMAGE_SIZE, **options: Any
) -> Callable[[], nn.Module]:
    """A network for the images of a configuration, which the halvings must leave something of."""
    if min(config.image_size) < least:
        height, width = config.image_size
        raise InputError(f"images must have at least {least}x{least} pixels, not {height}x{width}")
    return partial(network, *numbers, config.in_channels, config.num_classes, **_common(config), **options)


def _mlp(config: NetworkConfig, layers: int) -> Callable[[], nn.Module]:
    for _, noise in config.noise.items():
        if noise.kind is NoiseKind.FEATURE_DROPOUT:
            raise InputError(f"{noise} drops whole channels, and a perceptron has none; take dropout instead")
    values = config.in_channels * math.prod(config.image_size)
    return partial(Mlp, layers, values, config.num_classes, **_common(config))


def _common(config: NetworkConfig) -> dict[str, Any]:
    """The arguments that each network takes under the same name."""
    return {"width": config.width, "noise": config.noise}


_DEPTH, _NUMBER = r"(\d{1,4})", r"([1-9]\d{0,2})"
_GROUPED = (rf"{_DEPTH}-{_NUMBER}x{_NUMBER}d", "<depth>-<cardinality>x<width>d")
_FAMILIES: Mapping[str, tuple[str, str, Callable[..., Callable[[], nn.Module]]]] = {
    "preresnet": (rf"{_DEPTH}(?:-(basic|bottleneck))?", "<depth>[-basic|-bottleneck]", _preresnet),
    "wrn": (rf"{_DEPTH}-{_NUMBER}", "<depth>-<widen>", _wide_resnet),
    "densenet": (rf"{_DEPTH}-{_NUMBER}", "<depth>-<growth>", _densenet),
    "resnext": (*_GROUPED, _resnext),
    "resnet": (_DEPTH, "<depth>", _resnet),
    "seresnet": (_DEPTH, "<depth>", partial(_resnet, attention=True)),
    "seresnext": (*_GROUPED, partial(_resnet, attention=True)),
    "senet": ("154", "154", lambda config: _resnet(config, 152, 64, 4, attention=True, deep=True)),
    "mlp": (_NUMBER, "<layers>", _mlp),
}
"""By family: the pattern of the numbers after its name, in words too, and the function that chooses the network."""


def network_for(
    model: str, data: str, *, noise: Sequence[str], site: str, width: int, size: tuple[int, int] = DEFAULT_SIZE
) -> NetworkConfig:
    """The configuration of a network for a data set.

    Args:
        model: the name of the network.
        data: the data set, as `--data` takes it.
        noise: `[SITE=]KIND:VALUE` for each site, as in `dropout:0.5` or `last=uout:0.1`; or `none` alone.
        site: of the noise that names none.
        width: the factor on the network's usual channels.
        size: (height, width) in pixels that image files are brought to.

    Raises:
        InputError: an unknown network, data set, noise or site.
    """
    sites = NoiseSites.parse(noise, cast("Site", site))
    dataset = load_dataset(data, "test", size=size)
    height, width_in_pixels, channels = dataset.images.shape[1:]
    return NetworkConfig(
        model=model,
        in_channels=channels,
        image_size=(height, width_in_pixels),
        num_classes=len(dataset.class_names),
        noise=sites,
        width=width,
    )
