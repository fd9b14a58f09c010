from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig
from vsfix.trainers.training.augmentation import Augmentation
from vsfix.trainers.training.training_config import Schedule, TrainingConfig

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


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    rates = [Schedule(warmup=0.1).at(step, 100) for step in range(101)]
    assert rates[:3] == [0.1, 0.2, 0.3]
    assert rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.5, abs=1e-12)
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_steps_fall_at_their_milestones():
    schedule = Schedule("step", warmup=0.02, milestones=(0.3, 0.6, 0.8), decay=0.2)
    rates = [schedule.at(step, 200) for step in range(200)]
    expected = [0.25, 0.5, 0.75, 1] + [1] * 56 + [0.2] * 60 + [0.2**2] * 40 + [0.2**3] * 40
    assert rates == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("cosine", Schedule()),
        ("step:0.5,0.75", Schedule("step", milestones=(0.5, 0.75))),
        ("step:0.3:0.2", Schedule("step", milestones=(0.3,), decay=0.2)),
    ],
)
def test_a_text_names_a_schedule(text, schedule):
    assert Schedule.parse(text, 0.05) == schedule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear", "schedule 'linear' must be one of cosine, step"),
        ("step", "need each other"),
        ("cosine:0.5", "need each other"),
        ("step:0.75,0.5", "ascending"),
        ("step:0.5,0.5", "ascending"),
        ("step:0,0.5", "between 0 and 1"),
        ("step:60", "between 0 and 1"),
        ("step:half", "write cosine, or step:SHARE"),
        ("step:0.5:2", "decay must be a number between 0 and 1"),
    ],
)
def test_what_is_no_schedule_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Schedule.parse(text, 0)


@pytest.mark.parametrize("warmup", [-0.1, 1, "0.1", True, float("nan")])
def test_a_warm_up_that_is_no_share_is_refused(warmup):
    with pytest.raises(InputError, match="warmup must be"):
        Schedule(warmup=warmup)
