from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise import Noise
from vsfix.trainers.augmentation import Augmentation
from vsfix.trainers.network import NetworkConfig
from vsfix.trainers.noise_sites import NoiseSites
from vsfix.trainers.training_config import TrainingConfig

CONFIG = TrainingConfig(
    data="digits",
    network=NetworkConfig(
        model="preresnet-8",
        in_channels=1,
        image_size=(8, 8),
        num_classes=10,
        noise=NoiseSites(a=Noise.parse("dropout:0.5")),
    ),
)


@pytest.mark.parametrize("change", [{}, {"samples": 100, "precision": "bf16", "learning_rate": 0.1 + 0.2, "seed": 3}])
def test_json_gives_back_an_equal_configuration(change):
    config = replace(CONFIG, **change)
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data", ""),
        ("data", 3),
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("batch_size", 1),
        ("batch_size", "128"),
        ("learning_rate", 0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("momentum", 1),
        ("momentum", -0.1),
        ("weight_decay", -1e-9),
        ("seed", -1),
        ("samples", 0),
        ("precision", "16"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InputError, match=field):
        replace(CONFIG, **{field: value})


@pytest.mark.parametrize("augmentation", [Augmentation(crop=8), Augmentation(cutout=9)])
def test_an_augmentation_that_leaves_nothing_of_an_image_is_refused(augmentation):
    with pytest.raises(InputError, match="leaves nothing of an image of 8x8"):
        replace(CONFIG, augmentation=augmentation)


@pytest.mark.parametrize("values", [None, [], {}, {"epochs": 3}, CONFIG.to_dict() | {"dropout": 0.5}])
def test_missing_and_unknown_fields_are_refused(values):
    with pytest.raises(InputError, match="the fields must be"):
        TrainingConfig.from_dict(values)


@pytest.mark.parametrize("network", [None, 3, {}, {"model": "preresnet-8"}])
def test_a_network_that_is_none_is_refused(network):
    with pytest.raises(InputError):
        TrainingConfig.from_dict(CONFIG.to_dict() | {"network": network})
