"""Whether noise reaches anything that deployment computes, found by drawing it anew and looking who notices.

Copies of a module run in training mode under the same random numbers, but for those of the noise in question: these
are drawn anew in several trials, and in one more the noisy values are changed, for draws of a small ratio often
repeat themselves. The noise is idle where no part that eval mode runs as well gets another input in any trial, and
where the first tensors of the output, as many as eval mode returns, stay as they were: the Dropout of an auxiliary
head, or a call whose result nobody uses. Anything that can't be shown to be idle counts as reaching, and so does noise
whose draws can't be steered here, as those of a generator that a part keeps for itself.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from .module_signature import Example, ModuleInputs, as_inputs
from .noise_tracing import NoiseCalls, NoiseSource, following_modules

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


def reaches_deployment(module: nn.Module, example: Example, sources: Collection[NoiseSource]) -> bool:
    """Whether the noise of any of the sources reaches the prediction or a part that eval mode runs.

    Nothing of the module changes, nor any state of a random generator.

    Args:
        module: whose forward takes the example.
        example: real inputs, batch first, at least two rows.
        sources: of the noise; all are looked at together.
    """
    rows = as_inputs(example)
    with torch.no_grad():
        try:
            deployed = _Forward((), 0).watch(copy_module(module).eval(), rows)
            outputs = len(deployed.seen[_PREDICTION])
            first = _Forward(sources, 0).watch(copy_module(module).train(), rows, outputs)
            if first.steered != set(sources) or not first.seen[_PREDICTION]:
                return True
            for trial in (_VALUES, *range(1, TRIALS + 1)):
                other = _Forward(sources, trial).watch(copy_module(module).train(), rows, outputs)
                if any(first.seen.get(name) != other.seen.get(name) for name in deployed.seen):
                    return True
        except Exception:  # foreign code: what it does with other numbers is not known, so nothing is shown
            return True
    return False


_VALUES = -1  # the trial that draws the same numbers and changes the values


class _Forward:
    """One forward: the inputs of each part as digests, and the draws of the noise in question steered.

    Attributes:
        seen: one digest for each call of each part, by its name, and those of the outputs.
        steered: the sources that were met and drew from a global generator.
    """

    def __init__(self, sources: Collection[NoiseSource], trial: int) -> None:
        self.seen: dict[str, list[str]] = {}
        self.steered: set[NoiseSource] = set()
        self._sources = frozenset(sources)
        self._trial = trial
        self._scopes = [""]
        self._calls: Counter[str] = Counter()
        self._met = 0
        self._states: list[object] = []

    def watch(self, module: nn.Module, rows: ModuleInputs, outputs: int | None = None) -> _Forward:
        """Runs the module, and looks at so many of its outputs."""
        with random_states_kept():
            _seed_generators(0)
            with following_modules(module, self.enter, self.leave), NoiseCalls(self.steer):
                out = rows.call(module)
        tensors = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.seen[_PREDICTION] = [_digest(tensor) for tensor in tensors[:outputs]]
        return self

    def enter(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Steps into a part."""
        self._scopes.append(name)
        leaves = pytree.tree_leaves((args, dict(kwargs)))
        digests = [_digest(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        self.seen.setdefault(name, []).append(" ".join(digests))
        self.begin(NoiseSource(name))

    def leave(self, name: str, _: nn.Module, out: Any) -> None:
        """Steps out of it again."""
        self._scopes.pop()
        self.end(NoiseSource(name), out)

    def steer(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Calls a noise function, its draws steered."""
        part = self._scopes[-1]
        source = NoiseSource(part, self._calls[part])
        self._calls[part] += 1
        self.begin(source)
        out = func(*args, **kwargs)
        self.end(source, out)
        return out

    def begin(self, source: NoiseSource) -> None:
        """Draws other numbers from here on, in every trial but the first and that of the values."""
        if source not in self._sources:
            return
        self._met += 1
        if self._trial > 0:
            _seed_generators(1_000_000 * self._trial + self._met)
        self._states.append((torch.get_rng_state().numpy().tobytes(), global_generators()))

    def end(self, source: NoiseSource, out: Any) -> None:
        """Draws the same numbers again from here on, whatever the source has drawn."""
        if source not in self._sources:
            return
        if self._states.pop() != (torch.get_rng_state().numpy().tobytes(), global_generators()):
            self.steered.add(source)
        _seed_generators(self._met)
        if self._trial == _VALUES:
            _change(out)


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
