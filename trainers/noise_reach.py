"""Whether noise reaches anything that deployment computes, found by changing the noisy values and looking who notices.

Two copies of a module run in training mode under the same random numbers, one of them with the values behind the noise
changed. The noise is idle where no part that eval mode runs as well gets another input, and where the first tensor of
the output, which is the prediction, stays as it was: the Dropout of an auxiliary head, or a call whose result nobody
uses. Anything that can't be shown to be idle counts as reaching.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .module_twin import copy_module, random_states_kept
from .noise_tracing import NOISE_FUNCTIONS, NoisePlace, following_modules


def reaches_deployment(module: nn.Module, rows: torch.Tensor, places: Collection[NoisePlace]) -> bool:
    """Whether the noise at any of the places reaches the prediction or a part that eval mode runs.

    Nothing of the module changes, nor any state of a random generator.

    Args:
        module: takes one tensor.
        rows: a real input, batch first, at least two rows.
        places: what to change, all at once.
    """
    with torch.no_grad():
        try:
            deployed = _Inputs(places=())
            deployed.watch(copy_module(module).eval(), rows)
            undisturbed, disturbed = _Inputs(places=()), _Inputs(places)
            undisturbed.watch(copy_module(module).train(), rows)
            disturbed.watch(copy_module(module).train(), rows)
        except Exception:  # foreign code: what it does with other values is not known, so nothing is shown
            return True
    if disturbed.changed != set(places) or not undisturbed.seen[_PREDICTION]:
        return True
    return any(undisturbed.seen.get(name) != disturbed.seen.get(name) for name in {*deployed.seen, _PREDICTION})


_PREDICTION = "#prediction"  # no name of a part


class _Inputs:
    """The inputs of each part in one forward, as digests, by the part's name.

    Attributes:
        seen: one digest for each call of each part, and that of the prediction.
        changed: the places that were met.
    """

    def __init__(self, places: Collection[NoisePlace]) -> None:
        self.seen: dict[str, list[str]] = {}
        self.changed: set[NoisePlace] = set()
        self.scopes = [""]
        self.calls: Counter[str] = Counter()
        self._places = frozenset(places)

    def watch(self, module: nn.Module, rows: torch.Tensor) -> None:
        """Runs one forward."""
        with random_states_kept(), following_modules(module, self.enter, self.leave), _NoiseResults(self):
            out = module(rows.clone())
        tensors = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.seen[_PREDICTION] = [_digest(tensors[0])] if tensors else []

    def enter(self, name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Steps into a part."""
        self.scopes.append(name)
        leaves = pytree.tree_leaves(args)
        digests = [_digest(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        self.seen.setdefault(name, []).append(" ".join(digests))

    def leave(self, name: str, _: nn.Module, out: Any) -> None:
        """Steps out of it again."""
        self.scopes.pop()
        self.change(NoisePlace(name), out)

    def change(self, place: NoisePlace, out: Any) -> None:
        """Changes what was made at a place, in the memory where it stands: a result may share it with others."""
        if place not in self._places:
            return
        self.changed.add(place)
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                # No constant: a normalisation would take it away again.
                leaf.add_(torch.arange(leaf.numel(), dtype=leaf.dtype).sin().reshape(leaf.shape))


class _NoiseResults(TorchFunctionMode):
    """Changes the results of noise functions."""

    def __init__(self, inputs: _Inputs) -> None:
        super().__init__()
        self.inputs = inputs

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in NOISE_FUNCTIONS:
            part = self.inputs.scopes[-1]
            self.inputs.change(NoisePlace(part, self.inputs.calls[part]), out)
            self.inputs.calls[part] += 1
        return out


def _digest(tensor: torch.Tensor) -> str:
    """Tells two tensors apart, bit by bit."""
    values = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(values).hexdigest()
