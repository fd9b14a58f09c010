"""A small network, trained for a moment on the digits."""

from __future__ import annotations

import torch

from vsfix.trainers.data.datasets import load_dataset
from vsfix.trainers.data.preprocessing import Preprocessing
from vsfix.trainers.networks.network import NetworkConfig, build_network
from vsfix.trainers.training.checkpoint import Checkpoint
from vsfix.trainers.training.training_config import TrainingConfig


def digits_checkpoint(network: NetworkConfig) -> Checkpoint:
    """The checkpoint of a network whose statistics are true under its noise; the same for every caller."""
    preprocessing = Preprocessing(1, (8, 8), (0.3,), (0.37,), tuple("0123456789"))
    digits = load_dataset("digits", "train")
    images, labels = torch.from_numpy(preprocessing.apply(digits.images)), torch.from_numpy(digits.labels)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = build_network(network).train()
        optimizer = torch.optim.Adam(module.parameters(), 3e-3)
        for rows in [rows for _ in range(4) for rows in torch.randperm(1280).split(64)]:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(images[rows]), labels[rows]).backward()
            optimizer.step()
    return Checkpoint(TrainingConfig("digits", network), preprocessing, module.state_dict(), {}, {}, ())
