from __future__ import annotations

import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.trainers.networks.network import NetworkConfig
from vsfix.trainers.training.augmentation import Augmentation
from vsfix.trainers.training.recipes import find_recipe
from vsfix.trainers.training.training_config import TrainingConfig

NETWORK = NetworkConfig("wrn-10-1", 1, (8, 8), 10)


@pytest.mark.parametrize(
    ("name", "epochs", "rates"),
    [
        # (share of the run, learning rate there) as the papers say it
        ("preresnet", 164, {0.2: 0.1, 0.6: 0.01, 0.9: 0.001}),
        ("wrn", 200, {59 / 200: 0.1, 61 / 200: 0.02, 121 / 200: 0.004, 161 / 200: 0.0008}),
        ("densenet", 300, {0.49: 0.1, 0.51: 0.01, 0.76: 0.001}),
        ("resnext", 300, {149 / 300: 0.1, 151 / 300: 0.01, 226 / 300: 0.001}),
        ("resnet", 90, {29 / 90: 0.1, 31 / 90: 0.01, 61 / 90: 0.001}),
        ("senet", 100, {0.29: 0.6, 0.31: 0.06, 0.61: 0.006, 0.91: 0.0006}),
    ],
)
def test_the_learning_rate_falls_where_the_paper_says(name, epochs, rates):
    config = TrainingConfig("digits", NETWORK, **find_recipe(name))
    assert config.epochs == epochs
    found = {share: config.learning_rate * config.schedule.at(int(share * 10_000), 10_000) for share in rates}
    assert found == pytest.approx(rates, rel=1e-12)


def test_the_quick_recipe_is_the_default():
    assert TrainingConfig("digits", NETWORK, **find_recipe("quick")) == TrainingConfig("digits", NETWORK)


def test_options_change_a_part_of_a_recipe():
    config = TrainingConfig("digits", NETWORK, **{**find_recipe("wrn"), "epochs": 3, "seed": 7})
    assert (config.epochs, config.seed, config.batch_size, config.nesterov) == (3, 7, 128, True)
    assert config.augmentation == Augmentation(crop=4, flip=True)


def test_an_unknown_recipe_is_refused():
    with pytest.raises(InputError, match="must be one of quick, preresnet, wrn"):
        find_recipe("vgg")
