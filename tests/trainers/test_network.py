from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise import Noise
from vsfix.trainers.mlp import Mlp
from vsfix.trainers.network import NetworkConfig, build_network
from vsfix.trainers.preresnet import PreResNet

CONFIG = NetworkConfig("preresnet-8", 1, (8, 9), 10, Noise.parse("dropout:0.5"), "a")


@pytest.mark.parametrize(
    ("model", "kind"),
    [("preresnet-8", PreResNet), ("preresnet-11", PreResNet), ("preresnet-20-bottleneck", PreResNet), ("mlp-3", Mlp)],
)
def test_a_name_builds_its_network(model, kind):
    network = build_network(replace(CONFIG, model=model))
    assert type(network) is kind
    assert network.training
    assert network.eval()(torch.randn(2, 1, 8, 9)).shape == (2, 10)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"noise": None},
        {"noise": None, "site": "none"},
        {"noise": Noise.parse("uout:0.1"), "site": "last", "width": 3},
        {"noise": Noise.parse("dropout:0.12345678901234567")},
    ],
)
def test_json_gives_back_an_equal_configuration(change):
    config = replace(CONFIG, **change)
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "preresnet-19"}, r"model 'preresnet-19': the depth must be 6n\+2 \(basic\) or 9n\+2"),
        ({"model": "preresnet-2"}, "the depth must be"),
        ({"model": "preresnet-21-basic"}, r"model 'preresnet-21-basic': the depth must be 6n\+2"),
        ({"model": "preresnet-20-wide"}, "must be preresnet-<depth>"),
        ({"model": "preresnet"}, "must be preresnet-<depth>"),
        ({"model": "vgg-16"}, "model 'vgg-16': must be"),
        ({"model": ""}, "must be"),
        ({"model": 20}, "model 20: must be"),
        ({"model": "mlp-0"}, "1 to 999 layers"),
        ({"model": "mlp-2", "noise": Noise.parse("feature-dropout:0.1")}, "take dropout instead"),
        ({"image_size": (8, 7)}, "at least 8x8 pixels, not 8x7"),
        ({"image_size": 8}, "image_size"),
        ({"image_size": (8, 8, 1)}, "image_size"),
        ({"image_size": [8, 8]}, "image_size"),
        ({"in_channels": 0}, "in_channels"),
        ({"num_classes": True}, "num_classes"),
        ({"width": 1.5}, "width"),
        ({"noise": "dropout:0.5"}, "noise must be a Noise"),
        ({"site": "c"}, "site 'c' must be one of a, b, last, none"),
        ({"site": ["a"]}, "must be one of"),
        ({"site": "none"}, "dropout:0.5 stands nowhere"),
    ],
)
def test_what_can_not_be_built_is_refused_in_one_line(change, message):
    with pytest.raises(InputError, match=message) as caught:
        replace(CONFIG, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [None, [], {}, {"model": "mlp-2"}, CONFIG.to_dict() | {"depth": 20}])
def test_missing_and_unknown_fields_are_refused(values):
    with pytest.raises(InputError, match="the fields must be"):
        NetworkConfig.from_dict(values)


@pytest.mark.parametrize("change", [{"noise": "fog:0.5"}, {"noise": 0.5}, {"image_size": "8x8"}, {"width": "1"}])
def test_a_field_of_another_type_is_refused(change):
    with pytest.raises(InputError):
        NetworkConfig.from_dict(CONFIG.to_dict() | change)


def test_equal_seeds_give_equal_weights():
    states = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            states.append(build_network(CONFIG).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("site", "layer"),
    [("a", ["Linear", "ReLU", "Uout", "BatchNorm1d"]), ("b", ["Linear", "ReLU", "BatchNorm1d", "Uout"])],
)
def test_the_perceptron_has_its_noise_at_the_bn(site, layer):
    network = build_network(NetworkConfig("mlp-2", 1, (2, 3), 4, Noise.parse("uout:0.1"), site))
    assert [[type(part).__name__ for part in hidden] for hidden in network.layers] == [layer, layer]
    assert isinstance(network.noise, nn.Identity)


def test_the_perceptron_has_one_noise_layer_at_the_last_site():
    network = build_network(NetworkConfig("mlp-2", 1, (2, 3), 4, Noise.parse("uout:0.1"), "last"))
    assert sum(type(module).__name__ == "Uout" for module in network.modules()) == 1
    assert type(network.noise).__name__ == "Uout"
    assert network(torch.randn(3, 1, 2, 3)).shape == (3, 4)
