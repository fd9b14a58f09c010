"""The network that fits a data set: its channels, its image size and its classes are those of the images."""

from __future__ import annotations

from typing import cast

from vsfix.graph_passes.noise import Noise
from vsfix.trainers.datasets import load_dataset
from vsfix.trainers.network import NetworkConfig
from vsfix.trainers.noise_layers import Site


def network_for(model: str, data: str, *, noise: str, site: str | None, width: int) -> NetworkConfig:
    """The configuration of a network for a data set.

    Args:
        model: the name of the network.
        data: the data set, as `--data` takes it.
        noise: `dropout:0.5` and so on, or `none`.
        site: where the noise stands; None takes the paper's site a.
        width: what the network's usual channels are multiplied by.

    Raises:
        InputError: an unknown network, data set, noise or site.
    """
    parsed = None if noise == "none" else Noise.parse(noise)
    dataset = load_dataset(data, "test")
    height, width_in_pixels, channels = dataset.images.shape[1:]
    return NetworkConfig(
        model=model,
        in_channels=channels,
        image_size=(height, width_in_pixels),
        num_classes=len(dataset.class_names),
        noise=parsed,
        site="none" if parsed is None else cast("Site", site or "a"),
        width=width,
    )
