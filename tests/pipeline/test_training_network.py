from __future__ import annotations

import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise import Noise
from vsfix.pipeline.training_network import network_for


def test_the_network_takes_the_images_of_the_data_set():
    network = network_for("preresnet-8", "digits", noise="uout:0.1", site="b", width=2)
    assert (network.in_channels, network.image_size, network.num_classes, network.width) == (1, (8, 8), 10, 2)
    assert (network.noise, network.site) == (Noise.parse("uout:0.1"), "b")


def test_the_noise_stands_at_the_first_site_unless_told_otherwise():
    assert network_for("mlp-1", "digits", noise="dropout:0.5", site=None, width=1).site == "a"


def test_no_noise_stands_nowhere():
    network = network_for("mlp-1", "digits", noise="none", site=None, width=1)
    assert (network.noise, network.site) == (None, "none")


@pytest.mark.parametrize(("noise", "words"), [("dropout:1.5", "ratio"), ("gauss:1", "kind"), ("dropout", "KIND:VALUE")])
def test_noise_that_can_not_be_read_is_refused(noise, words):
    with pytest.raises(InputError, match=words):
        network_for("mlp-1", "digits", noise=noise, site=None, width=1)
