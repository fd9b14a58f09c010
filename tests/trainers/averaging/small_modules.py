"""Modules that are trained in a moment, and the average over their noise as torch itself draws it."""

from __future__ import annotations

import copy

import torch
from torch import nn

NOISES = (nn.Dropout, nn.Dropout2d)


def friedman(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Friedman's first function, standardised, of five numbers."""
    x = torch.rand((rows, 5), generator=torch.Generator().manual_seed(seed))
    y = 10 * torch.sin(torch.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    return x, (y[:, None] - 14.4) / 4.9


def regressor(ratio: float = 0.5) -> nn.Module:
    """Dropout directly in front of each BatchNorm: switched off, it leaves too small a variance."""
    layers: list[nn.Module] = []
    for inputs in (5, 32):
        layers += [nn.Linear(inputs, 32), nn.Dropout(ratio), nn.BatchNorm1d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 1))


def train(module: nn.Module, steps: int = 250) -> nn.Module:
    """Trains a regressor; the module is in eval mode afterwards."""
    x, y = friedman(2000, 0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        module.train()
        optimizer = torch.optim.Adam(module.parameters(), 1e-2)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            nn.functional.mse_loss(module(x[rows]), y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return module.eval()


def averaged(module: nn.Module, x: torch.Tensor, draws: int = 400) -> torch.Tensor:
    """The mean output under the noise, by the training flags of the Dropouts of a copy and nothing of vsfix."""
    twin = copy.deepcopy(module).eval()
    for part in twin.modules():
        part.training = isinstance(part, NOISES)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        return torch.stack([twin(x) for _ in range(draws)]).mean(0)


def state(module: nn.Module) -> dict[str, object]:
    """Everything that must be as before: values to the bit, flags, hooks, the generator."""
    values = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    flags = [(name, part.training) for name, part in module.named_modules()]
    gradients = [(name, parameter.requires_grad) for name, parameter in module.named_parameters()]
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()]
    attributes = [sorted(vars(part)) for part in module.modules()]
    return {"values": values, "rest": (flags, gradients, hooks, attributes), "generator": torch.get_rng_state()}


def assert_same_state(module: nn.Module, before: dict[str, object]) -> None:
    """Nothing of a module has changed."""
    now = state(module)
    assert now["rest"] == before["rest"]
    assert torch.equal(now["generator"], before["generator"])
    assert now["values"].keys() == before["values"].keys()
    assert all(torch.equal(tensor, before["values"][name]) for name, tensor in now["values"].items())
