"""Whether noise reaches anything that deployment computes, found by drawing it anew and looking who notices.

Copies of a module run in training mode under the same random numbers, but for those of the noise in question: these
are drawn anew in several trials, and in one more the values behind them are changed, for draws of a small ratio often
repeat themselves. The noise is idle where no part that eval mode runs as well gets another input in any trial, and
where the first tensor of the output, which is the prediction, stays as it was: the Dropout of an auxiliary head, or a
call whose result nobody uses. Anything that can't be shown to be idle counts as reaching, and so does noise whose draws
can't be steered here, as those of a generator that a part keeps for itself.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .noise_tracing import NOISE_FUNCTIONS, NoisePlace, following_modules

TRIALS = 8
_PREDICTION = "#prediction"  # no name of a part


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


def reaches_deployment(module: nn.Module, rows: torch.Tensor, places: Collection[NoisePlace]) -> bool:
    """Whether the noise at any of the places reaches the prediction or a part that eval mode runs.

    Nothing of the module changes, nor any state of a random generator.

    Args:
        module: takes one tensor.
        rows: a real input, batch first, at least two rows.
        places: where the noise is; all are looked at together.
    """
    with torch.no_grad():
        try:
            deployed = _Forward((), 0).watch(copy_module(module).eval(), rows)
            first = _Forward(places, 0).watch(copy_module(module).train(), rows)
            if first.steered != set(places) or not first.seen[_PREDICTION]:
                return True
            for trial in (_VALUES, *range(1, TRIALS + 1)):
                other = _Forward(places, trial).watch(copy_module(module).train(), rows)
                if any(first.seen.get(name) != other.seen.get(name) for name in deployed.seen):
                    return True
        except Exception:  # foreign code: what it does with other numbers is not known, so nothing is shown
            return True
    return False


_VALUES = -1  # the trial that draws the same numbers and changes the values


class _Forward:
    """One forward: the inputs of each part as digests, and the draws of the noise in question steered.

    Attributes:
        seen: one digest for each call of each part, by its name, and that of the prediction.
        steered: the places that were met and drew from a global generator.
    """

    def __init__(self, places: Collection[NoisePlace], trial: int) -> None:
        self.seen: dict[str, list[str]] = {}
        self.steered: set[NoisePlace] = set()
        self._places = frozenset(places)
        self._trial = trial
        self._scopes = [""]
        self._calls: Counter[str] = Counter()
        self._met = 0
        self._states: list[object] = []

    def watch(self, module: nn.Module, rows: torch.Tensor) -> _Forward:
        """Runs the module."""
        with random_states_kept():
            _seed_generators(0)
            with following_modules(module, self.enter, self.leave), _NoiseCalls(self):
                out = module(rows.clone())
        tensors = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.seen[_PREDICTION] = [_digest(tensors[0])] if tensors else []
        return self

    def enter(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Steps into a part."""
        self._scopes.append(name)
        leaves = pytree.tree_leaves((args, dict(kwargs)))
        digests = [_digest(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        self.seen.setdefault(name, []).append(" ".join(digests))
        self.begin(NoisePlace(name))

    def leave(self, name: str, _: nn.Module, out: Any) -> None:
        """Steps out of it again."""
        self._scopes.pop()
        self.end(NoisePlace(name), out)

    def next_call(self) -> NoisePlace:
        """The place of the noise function that is about to be called."""
        part = self._scopes[-1]
        self._calls[part] += 1
        return NoisePlace(part, self._calls[part] - 1)

    def begin(self, place: NoisePlace) -> None:
        """Draws other numbers from here on, in every trial but the first and that of the values."""
        if place not in self._places:
            return
        self._met += 1
        if self._trial > 0:
            _seed_generators(1_000_000 * self._trial + self._met)
        self._states.append((torch.get_rng_state().numpy().tobytes(), global_generators()))

    def end(self, place: NoisePlace, out: Any) -> None:
        """Draws the same numbers again from here on, whatever was drawn at the place."""
        if place not in self._places:
            return
        if self._states.pop() != (torch.get_rng_state().numpy().tobytes(), global_generators()):
            self.steered.add(place)
        _seed_generators(self._met)
        if self._trial == _VALUES:
            _change(out)


class _NoiseCalls(TorchFunctionMode):
    """Steers the draws of noise functions."""

    def __init__(self, forward: _Forward) -> None:
        super().__init__()
        self.forward = forward

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in NOISE_FUNCTIONS:
            return func(*args, **(kwargs or {}))
        place = self.forward.next_call()
        self.forward.begin(place)
        out = func(*args, **(kwargs or {}))
        self.forward.end(place, out)
        return out


def _seed_generators(number: int) -> None:
    """Seeds every global generator; inside `random_states_kept`."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def _change(out: Any) -> None:
    """Changes values in the memory where they stand, which a result may share with others."""
    for leaf in pytree.tree_leaves(out):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            # No constant: a normalisation would take it away again.
            leaf.add_(torch.arange(leaf.numel(), dtype=leaf.dtype).sin().reshape(leaf.shape))


def _digest(tensor: torch.Tensor) -> str:
    """Tells two tensors apart, bit by bit."""
    values = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(values).hexdigest()
