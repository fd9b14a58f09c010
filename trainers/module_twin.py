"""A copy of a module to run in training mode, so that nothing of the module and of the random generators changes."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


def copy_module(module: nn.Module) -> nn.Module:
    """A deep copy; a weight that the last forward computed, as under weight_norm, is copied by its values."""
    held = [value for part in module.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    computed: dict[int, Any] = {id(value): value.detach().clone() for value in held if not value.is_leaf}
    return copy.deepcopy(module, computed)


def global_generators() -> tuple[object, ...]:
    """The states of the global generators of Python and numpy, to compare."""
    name, key, *position = np.random.get_state(legacy=True)
    return random.getstate(), name, np.asarray(key).tobytes(), tuple(position)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Puts every global random generator back to where it was."""
    python, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=()):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
