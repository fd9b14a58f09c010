"""The network of README, and a program that trains it: it writes weights.pt, rows.npz and test.npz here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.datasets import make_friedman1
from torch import nn


def build() -> nn.Module:
    """A regressor: Linear, Dropout, BatchNorm, ReLU, twice; (N, 10) -> (N, 1)."""
    return nn.Sequential(*block(10), *block(128), nn.Linear(128, 1))


def block(inputs: int) -> Sequence[nn.Module]:
    """One hidden layer of 128."""
    return nn.Linear(inputs, 128), nn.Dropout(0.5), nn.BatchNorm1d(128), nn.ReLU()


if __name__ == "__main__":
    torch.manual_seed(0)
    x, y = (torch.tensor(values, dtype=torch.float32) for values in make_friedman1(6000, noise=0.5, random_state=0))
    x, y = x * 2 - 1, ((y - y.mean()) / y.std())[:, None]
    module = build()
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    for rows in (rows for _ in range(40) for rows in torch.randperm(4000).split(100)):
        optimiser.zero_grad()
        nn.functional.mse_loss(module(x[rows]), y[rows]).backward()
        optimiser.step()
    torch.save(module.state_dict(), "weights.pt")
    np.savez("rows.npz", input=x[:4000])
    np.savez("test.npz", input=x[4000:], labels=y[4000:])
