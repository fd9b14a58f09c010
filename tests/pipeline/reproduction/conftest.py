from __future__ import annotations

import pytest

from vsfix.pipeline.reproduction.trial import Trial
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig
from vsfix.trainers.training.training_config import TrainingConfig


@pytest.fixture
def make_trial():
    """A run of two seconds: `make_trial(seed, noise=..., **fields of the training)`."""

    def make(seed: int = 0, noise: str = "a=dropout:0.5", *, repairs: tuple[str, ...] = (), **changes) -> Trial:
        network = NetworkConfig("preresnet-8", 1, (8, 8), 10, NoiseSites.parse([noise]))
        usual = {"epochs": 1, "batch_size": 32, "samples": 128}
        return Trial(TrainingConfig("digits", network, seed=seed, **(usual | changes)), repairs)

    return make
