"""Watches a module in training mode, where its noise really happens, for noise that eval mode does not show.

A copy of the module runs once in training mode and once in eval mode. Each random operator is seen by the dispatcher
and charged to the module whose own forward draws it. Calls of the functions that `noise_tracing` marks explain
themselves, as long as eval mode makes as many of them. What is left is noise made by hand: that of a layer is
identified by trying the layer out, and whatever can't be identified is named, so that no file claims to show it. Noise
of parts that run in training mode only is left out where nothing that is deployed notices it (see `noise_reach`).

Not seen: draws from a generator of numpy that the module keeps for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vsfix.graph_passes.errors import first_line
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.progress import stage

from .module_signature import Example, ModuleInputs, as_inputs
from .noise_identification import Identification, identify_noise
from .noise_reach import copy_module, global_generators, random_states_kept, reaches_deployment
from .noise_tracing import NoiseCalls, NoiseSource, following_modules


@dataclass(frozen=True)
class TrainingNoise:
    """The noise that a module makes by hand.

    Attributes:
        layers: the noise of each layer whose kind is known, by the layer's name.
        unknown: one description for each noise that is there and can't be named.
        parts: the names of the modules that make those of `unknown` that a module makes.
    """

    layers: Mapping[str, Noise]
    unknown: tuple[str, ...]
    parts: tuple[str, ...] = ()


@stage("watching the noise of training")
def observe_training_noise(module: nn.Module, example: Example) -> TrainingNoise:
    """Finds the noise that `module` makes in training mode and that no noise function shows in eval mode.

    Nothing of the module changes, nor any state of a random generator: a copy runs.

    Args:
        module: whose forward takes the example.
        example: real inputs, batch first, at least two rows.
    """
    rows = as_inputs(example)
    try:
        twin = copy_module(module)
    except Exception as error:  # the state of foreign code may refuse in any way
        return _unobserved(f"it can't be copied: {first_line(error)}")
    with torch.no_grad(), random_states_kept():
        try:
            training = _watch(twin.train(), rows)
        except Exception as error:  # a forward is foreign code
            return _unobserved(f"its forward fails there: {first_line(error)}")
        evaluation = _watch(twin.eval(), rows)
    hidden = _hidden_draws(training, evaluation)
    idle = {name for name in hidden if name not in evaluation.ran}
    if idle and reaches_deployment(module, rows, [NoiseSource(name) for name in idle]):
        idle.clear()
    with torch.no_grad(), random_states_kept():
        return _explain(twin, hidden - idle, training, evaluation)


def _unobserved(reason: str) -> TrainingNoise:
    return TrainingNoise({}, (f"the noise in training mode ({reason})",))


class _Draws:
    """The random draws of one forward.

    Attributes:
        by_hand: how many random operators the own forward of each module ran outside the noise functions.
        calls: how many noise functions it called.
        inputs: the positional arguments of each call of each module that has no parts.
        ran: the names of all modules that ran.
        elsewhere: whether Python's or numpy's generator was used.
    """

    def __init__(self) -> None:
        self.by_hand: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.inputs: dict[str, list[tuple[Any, ...]]] = {}
        self.ran: set[str] = set()
        self.elsewhere = False
        self.inside_noise_function = False
        self.scopes = [""]

    def enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Steps into a module."""
        self.scopes.append(name)
        self.ran.add(name)
        if not any(module.children()):
            self.inputs.setdefault(name, []).append((*args, kwargs) if kwargs else args)

    def leave(self, _: str, __: nn.Module, ___: Any) -> None:
        """Steps out of it again."""
        self.scopes.pop()

    def count(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Calls a noise function."""
        self.calls[self.scopes[-1]] += 1
        self.inside_noise_function = True
        try:
            return func(*args, **kwargs)
        finally:
            self.inside_noise_function = False


class _RandomOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the random operators that run outside the noise functions."""

    def __init__(self, draws: _Draws) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.draws = draws

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or self.draws.inside_noise_function:
            return func(*args, **kwargs)
        # The tag says that the operator may draw; with its noise off (attention, rrelu) the generator is unchanged.
        before = torch.get_rng_state()
        out = func(*args, **kwargs)
        if kwargs.get("generator") is not None or not torch.equal(before, torch.get_rng_state()):
            self.draws.by_hand[self.draws.scopes[-1]] += 1
        return out


def _watch(module: nn.Module, rows: ModuleInputs) -> _Draws:
    """Runs a forward; the random draws that it makes."""
    draws = _Draws()
    before = global_generators()
    with following_modules(module, draws.enter, draws.leave), NoiseCalls(draws.count), _RandomOperators(draws):
        rows.call(module)
    draws.elsewhere = global_generators() != before
    return draws


def _hidden_draws(training: _Draws, evaluation: _Draws) -> set[str]:
    """The names of the modules that draw in training mode and don't show it in eval mode."""
    return {name for name, count in training.by_hand.items() if count > evaluation.by_hand[name]} | {
        name for name, count in training.calls.items() if count > evaluation.calls[name]
    }


def _explain(twin: nn.Module, hidden: set[str], training: _Draws, evaluation: _Draws) -> TrainingNoise:
    """Names the noise of the modules whose draws eval mode does not show."""
    layers: dict[str, Noise] = {}
    parts: list[str] = []
    unknown = ["random numbers of Python or numpy that its forward draws"] if training.elsewhere else []
    for name, part in twin.named_modules():
        if name not in hidden:
            continue
        found = _identify(part, evaluation.inputs.get(name, []), evaluation.calls[name])
        if found.noise is not None:
            layers[name] = found.noise
        elif found.reason:
            label = f"{type(part).__name__} '{name}'" if name else type(part).__name__
            unknown.append(f"the noise of {label} ({found.reason})")
            parts.append(name)
    return TrainingNoise(layers, tuple(unknown), tuple(parts))


def _identify(part: nn.Module, calls: list[tuple[Any, ...]], marked: int) -> Identification:
    """The noise that the own forward of one module makes by hand, or why it is not known."""
    reason = ""
    if isinstance(part, nn.MultiheadAttention):
        reason = "on the weights of its attention"
    elif isinstance(part, nn.RNNBase):
        reason = "between its layers"
    elif any(part.children()):
        reason = "drawn in its own forward, which has other parts as well"
    elif not calls:
        reason = "it runs in training mode only"
    elif marked:
        reason = "by a noise function and by hand as well"
    elif any(len(args) != 1 or not _is_float_tensor(args[0]) for args in calls):
        reason = "it does not take one tensor of floating point numbers"
    return Identification(None, reason) if reason else identify_noise(part, [args[0] for args in calls])


def _is_float_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
