"""A network as plain data, and how it is built from it; `network_families` has the names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from vsfix.graph_passes.errors import InputError

from .network_families import network_builder
from .noise_sites import NO_NOISE, NoiseSites
from .preprocessing import MOST_PIXELS


@dataclass(frozen=True)
class NetworkConfig:
    """One network, without its weights.

    Attributes:
        model: the name, see `network_families`.
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
