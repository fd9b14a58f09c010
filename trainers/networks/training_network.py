"""The network that fits a data set: its channels, its image size and its classes are those of the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from vsfix.trainers.data.datasets import DEFAULT_SIZE, load_dataset
from vsfix.trainers.layers.noise_sites import NoiseSites, Site

from .network import NetworkConfig


def network_for(
    model: str, data: str, *, noise: Sequence[str], site: str, width: int, size: tuple[int, int] = DEFAULT_SIZE
) -> NetworkConfig:
    """The configuration of a network for a data set.

    Args:
        model: the name of the network.
        data: the data set, as `--data` takes it.
        noise: `[SITE=]KIND:VALUE` for each site, as in `dropout:0.5` or `last=uout:0.1`; or `none` alone.
        site: where the noise stands that names no site.
        width: what the network's usual channels are multiplied by.
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
