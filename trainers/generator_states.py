"""The states of torch's random generators, of which the noise of a training run draws."""

from __future__ import annotations

import torch


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states by device: "cpu", and "cuda" where `device` is a GPU; uint8, on the CPU."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def set_generator_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Puts back what `generator_states` gave."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
