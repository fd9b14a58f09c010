from __future__ import annotations

from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.training_network import network_for


def test_the_network_takes_the_images_of_the_data_set():
    network = network_for("preresnet-8", "digits", noise=["uout:0.1", "last=dropout:0.2"], site="b", width=2)
    assert (network.in_channels, network.image_size, network.num_classes, network.width) == (1, (8, 8), 10, 2)
    assert network.noise == NoiseSites(b=Noise.parse("uout:0.1"), last=Noise.parse("dropout:0.2"))
