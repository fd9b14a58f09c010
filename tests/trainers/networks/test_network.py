from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.densenet import DenseNet
from vsfix.trainers.networks.mlp import Mlp
from vsfix.trainers.networks.network import NetworkConfig, build_network, network_for
from vsfix.trainers.networks.preactivation import PreResNet, WideResNet
from vsfix.trainers.networks.residual import ResNeXt

CONFIG = NetworkConfig("preresnet-8", 1, (8, 9), 10, NoiseSites(a=Noise.parse("dropout:0.5")))


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("preresnet-8", PreResNet),
        ("preresnet-11", PreResNet),
        ("preresnet-20-bottleneck", PreResNet),
        ("wrn-10-2", WideResNet),
        ("densenet-10-3", DenseNet),
        ("resnext-11-2x3d", ResNeXt),
        ("mlp-3", Mlp),
    ],
)
def test_a_name_builds_its_network(model, kind):
    network = build_network(replace(CONFIG, model=model))
    assert type(network) is kind
    assert network.training
    assert network.eval()(torch.randn(2, 1, 8, 9)).shape == (2, 10)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (9, 14), (64, 64)])
@pytest.mark.parametrize("model", ["preresnet-8", "wrn-10-2", "densenet-16-4", "resnext-11-2x4d"])
def test_a_step_trains_on_any_image_size(model, size):
    torch.manual_seed(0)
    noise = NoiseSites(last=Noise.parse("feature-dropout:0.5"))
    network = build_network(NetworkConfig(model, 3, size, 5, noise))
    images, labels = torch.randn(4, 3, *size), torch.arange(4)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    F.cross_entropy(network(images), labels).backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    moved = [not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)]
    assert all(moved)
    assert network.eval()(images).shape == (4, 5)
    assert torch.isfinite(network(images)).all()


@pytest.mark.parametrize("model", ["preresnet-8", "wrn-10-2", "densenet-10-4", "resnext-11-2x3d", "mlp-1"])
def test_the_configuration_reaches_the_network(model):
    config = replace(CONFIG, model=model, in_channels=3, num_classes=7, noise=NoiseSites(last=Noise.parse("uout:0.1")))
    with torch.device("meta"):
        usual, wide = (build_network(replace(config, width=width)) for width in (1, 3))
    assert [name for name, module in usual.named_modules() if type(module).__name__ == "Uout"] == ["noise"]
    assert usual.classifier.out_features == 7
    assert wide.classifier.in_features == 3 * usual.classifier.in_features
    assert usual(torch.empty(2, 3, 8, 9, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("wrn-16-4", {"conv": 16, "bn": 256}),
        ("densenet-40-12", {"conv": 24, "bn": 132}),
        ("resnext-29-8x64d", {"conv": 64, "stage3.2.body.bn2": 2048, "stage3.2.body.bn3": 1024}),
    ],
)
def test_the_numbers_of_a_name_are_those_of_its_paper(model, sizes):
    with torch.device("meta"):
        network = build_network(replace(CONFIG, model=model, image_size=(32, 32)))
    assert {name: len(network.get_submodule(name).weight) for name in sizes} == sizes


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"noise": NoiseSites()},
        {"noise": NoiseSites(last=Noise.parse("uout:0.1")), "width": 3},
        {"noise": NoiseSites(Noise.parse("dropout:0.12345678901234567"), Noise.parse("uout:0.2"))},
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
        ({"model": "preresnet"}, r"must be preresnet-<depth>\[-basic\|-bottleneck\]"),
        (
            {"model": "vgg-16"},
            "model 'vgg-16': must be preresnet-<depth>, wrn-<depth>-<widen>, densenet-<depth>-<growth>",
        ),
        ({"model": "wrn-18-4"}, r"model 'wrn-18-4': the depth must be 6n\+4 .*, not 18"),
        ({"model": "wrn-4-4"}, r"6n\+4 with n of at least 1"),
        ({"model": "wrn-16"}, "must be wrn-<depth>-<widen>"),
        ({"model": "wrn-16-0"}, "with whole numbers from 1 on, below 1000"),
        ({"model": "densenet-41-12"}, r"model 'densenet-41-12': the depth must be 6n\+4 .*, not 41"),
        ({"model": "densenet-40"}, "must be densenet-<depth>-<growth>"),
        ({"model": "densenet-40-0"}, "with whole numbers from 1 on, below 1000"),
        ({"model": "resnext-28-8x64d"}, r"model 'resnext-28-8x64d': the depth must be 9n\+2 .*, not 28"),
        ({"model": "resnext-29-8x64"}, "must be resnext-<depth>-<cardinality>x<width>d"),
        ({"model": "resnext-29-0x64d"}, "with whole numbers from 1 on, below 1000"),
        ({"model": "wrn-10-1", "image_size": (7, 8)}, "at least 8x8 pixels, not 7x8"),
        ({"model": "densenet-10-4", "image_size": (4, 32)}, "at least 8x8 pixels, not 4x32"),
        ({"model": "resnext-11-2x3d", "image_size": (8, 7)}, "at least 8x8 pixels, not 8x7"),
        ({"model": ""}, "must be"),
        ({"model": 20}, "model 20: must be"),
        ({"model": "mlp-0"}, "must be mlp-<layers>, with whole numbers from 1 on"),
        ({"model": "mlp-2", "noise": NoiseSites(b=Noise.parse("feature-dropout:0.1"))}, "take dropout instead"),
        ({"image_size": (8, 7)}, "at least 8x8 pixels, not 8x7"),
        ({"image_size": 8}, "image_size"),
        ({"image_size": (10**6, 10**6)}, "67,108,864 pixels are the most"),
        ({"image_size": (8, 8, 1)}, "image_size"),
        ({"image_size": [8, 8]}, "image_size"),
        ({"in_channels": 0}, "in_channels"),
        ({"num_classes": True}, "num_classes"),
        ({"width": 1.5}, "width"),
        ({"noise": "dropout:0.5"}, "noise must be a Noise"),
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


@pytest.mark.parametrize(
    "change",
    [
        {"noise": "dropout:0.5"},
        {"noise": {"a": None}},
        {"noise": None},
        {"noise": {"a": 0.5, "b": None, "last": None}},
        {"image_size": "8x8"},
        {"width": "1"},
    ],
)
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
    network = build_network(NetworkConfig("mlp-2", 1, (2, 3), 4, NoiseSites(**{site: Noise.parse("uout:0.1")})))
    assert [[type(part).__name__ for part in hidden] for hidden in network.layers] == [layer, layer]
    assert isinstance(network.noise, nn.Identity)


def test_the_perceptron_has_one_noise_layer_at_the_last_site():
    network = build_network(NetworkConfig("mlp-2", 1, (2, 3), 4, NoiseSites(last=Noise.parse("uout:0.1"))))
    assert sum(type(module).__name__ == "Uout" for module in network.modules()) == 1
    assert type(network.noise).__name__ == "Uout"
    assert network(torch.randn(3, 1, 2, 3)).shape == (3, 4)


def test_the_network_takes_the_images_of_the_data_set():
    network = network_for("preresnet-8", "digits", noise=["uout:0.1", "last=dropout:0.2"], site="b", width=2)
    assert (network.in_channels, network.image_size, network.num_classes, network.width) == (1, (8, 8), 10, 2)
    assert network.noise == NoiseSites(b=Noise.parse("uout:0.1"), last=Noise.parse("dropout:0.2"))
