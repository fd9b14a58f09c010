"""The parameters of a module with the scale and shift of its units: made beside its own, and written all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.estimators.unit_fit import moved
from vsfix.graph_passes.estimators.units import FoundParameters
from vsfix.graph_passes.ir.runtime import Float64Array
from vsfix.graph_passes.statistics.moments import Moments
from vsfix.trainers.layers.repair_mark import mark_repaired, repaired_parts

from .recording import ModuleUnit

CONVOLUTIONS_BACK = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class StoredBatchNorm:
    """The statistics of a BatchNorm (`stored_statistics.StoredStatistics`), its scale and its shift, float64."""

    name: str
    mean: Float64Array
    variance: Float64Array
    gamma: Float64Array
    beta: Float64Array
    epsilon: float

    @property
    def is_new(self) -> bool:
        """Whether it stores what a new BatchNorm does."""
        return not self.mean.any() and bool((self.variance == 1).all())

    @classmethod
    def of(cls, name: str, part: nn.Module) -> StoredBatchNorm:
        """Reads a BatchNorm; one without scale and shift has 1 and 0."""
        assert isinstance(part, nn.modules.batchnorm._BatchNorm)
        assert part.running_mean is not None
        assert part.running_var is not None
        mean, variance = _wide(part.running_mean), _wide(part.running_var)
        gamma = np.ones(mean.shape) if part.weight is None else _wide(part.weight)
        beta = np.zeros(mean.shape) if part.bias is None else _wide(part.bias)
        return cls(name, mean, variance, gamma, beta, part.eps)


def _wide(tensor: torch.Tensor) -> Float64Array:
    """A copy in float64."""
    return np.array(tensor.detach().cpu().double().numpy())


def affine(z: torch.Tensor, a: Float64Array, b: Float64Array, axis: int) -> torch.Tensor:
    """A z + b for each channel, in the type of z."""
    sides = [1] * z.dim()
    sides[axis] = len(a)
    scale, shift = (torch.from_numpy(values).to(z.device, z.dtype).reshape(sides) for values in (a, b))
    return z * scale + shift


def new_tensors(
    module: nn.Module, units: Sequence[ModuleUnit], found: Mapping[str, FoundParameters]
) -> dict[str, torch.Tensor]:
    """The parameters and buffers that a module has with a and b, by name, in the types that they have.

    Args:
        module: not changed.
        units: of it.
        found: by the name of the unit; those of a part with several uses are the same.
    """
    tensors: dict[str, torch.Tensor] = {}
    for unit in units:
        parameters = found.get(unit.name)
        if unit.name != unit.part or parameters is None or not (parameters.changed or parameters.moments is not None):
            continue
        part = module.get_submodule(unit.part)
        own = _batch_norm(part, parameters) if unit.is_batch_norm else _linear(part, parameters)
        prefix = f"{unit.part}." if unit.part else ""
        tensors |= {f"{prefix}{name}": tensor for name, tensor in own.items()}
    return tensors


def _batch_norm(part: nn.Module, found: FoundParameters) -> dict[str, torch.Tensor]:
    """Those of a BatchNorm; see `units.write_parameters` of `graph_passes.estimators`."""
    stored = StoredBatchNorm.of("", part)
    like: dict[str, Any] = {name: getattr(part, name) for name in ("running_mean", "running_var")}
    like |= {name: getattr(part, name) for name in ("weight", "bias")}
    like = {name: tensor if tensor is not None else like["running_var"] for name, tensor in like.items()}

    def stored_as(name: str, values: Float64Array) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values)).to(like[name].device, like[name].dtype)

    tensors: dict[str, torch.Tensor] = {}
    mean, variance = stored.mean, stored.variance
    if found.moments is not None:
        move = np.sign(stored.gamma) * found.moments.move * np.sqrt(np.maximum(variance, 0))
        tensors["running_mean"] = stored_as("running_mean", mean + move)
        tensors["running_var"] = stored_as("running_var", variance * np.exp(found.moments.log_ratio))
        mean, variance = _wide(tensors["running_mean"]), _wide(tensors["running_var"])
    before = np.sqrt(stored.variance + stored.epsilon)
    gamma = found.scale * stored.gamma * np.sqrt(variance + stored.epsilon) / before
    beta = found.scale * (stored.beta + stored.gamma * (mean - stored.mean) / before) + found.shift
    return tensors | {"weight": stored_as("weight", gamma), "bias": stored_as("bias", beta)}


def _linear(part: nn.Module, found: FoundParameters) -> dict[str, torch.Tensor]:
    """Those of a linear layer."""
    weight = part.weight
    assert isinstance(weight, torch.Tensor)
    groups = part.groups if isinstance(part, CONVOLUTIONS_BACK) else 1
    scale = torch.from_numpy(found.scale)
    wide = weight.detach().cpu().double()
    if isinstance(part, CONVOLUTIONS_BACK):  # (C_in, C_out/groups, *kernel)
        by_group = wide.reshape(groups, -1, *wide.shape[1:])
        sides = (groups, 1, -1, *(1,) * (wide.dim() - 2))
        scaled = (by_group * scale.reshape(sides)).reshape(wide.shape)
    else:  # (C_out, C_in/groups, *kernel)
        scaled = wide * scale.reshape(-1, *(1,) * (wide.dim() - 1))
    bias = np.zeros(len(found.scale)) if part.bias is None else _wide(part.bias)  # type: ignore[arg-type]
    shifted = torch.from_numpy(found.scale * bias + found.shift)
    tensors = {"bias": shifted.to(weight.device, weight.dtype)}
    return tensors if (found.scale == 1).all() else tensors | {"weight": scaled.to(weight.device, weight.dtype)}


def why_fixed(module: nn.Module, unit: ModuleUnit) -> str | None:
    """The reason why the parameters of a unit can't be changed; None where they can."""
    part = module.get_submodule(unit.part)
    if any(name not in part._parameters for name in ("weight", "bias")):
        return "its weight is computed by a parametrization"
    own = {id(tensor) for tensor in part._parameters.values() if tensor is not None}
    others = [other for other in module.modules() if other is not part]
    if any(id(tensor) in own for other in others for tensor in other._parameters.values()):
        return "another part has the same weight"
    return None


def with_moments(
    found: Mapping[str, FoundParameters],
    module: nn.Module,
    units: Sequence[ModuleUnit],
    off: Mapping[str, Moments],
    on: Mapping[str, Moments],
) -> dict[str, FoundParameters]:
    """Adds the moments that each BatchNorm's input has with the noise off to its parameters."""
    result = dict(found)
    for unit in units:
        if unit.is_batch_norm and unit.name in result and unit.part in off and unit.part in on:
            gamma = StoredBatchNorm.of(unit.part, module.get_submodule(unit.part)).gamma
            result[unit.name] = replace(result[unit.name], moments=moved(off[unit.part], on[unit.part], gamma))
    return result


class _Functional(nn.Module):
    """A module with other parameters, as something that is called."""

    def __init__(self, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._held = (module, dict(tensors))  # in a tuple it is no part of this one

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module with the other parameters."""
        module, tensors = self._held
        return functional_call(module, tensors, args, kwargs)


def functional(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A module with other parameters and buffers in the place of some of its own, which stay as they are.

    Args:
        module: what is called.
        tensors: by name, as `new_tensors` gives them.
    """
    return _Functional(module, tensors)


def require_changeable(module: nn.Module) -> None:
    """Refuses a module that was repaired, or made inside inference mode, and that mode itself."""
    require_unrepaired(module)
    if torch.is_inference_mode_enabled():
        raise InputError("a module can't be repaired inside torch.inference_mode: call repair_ outside of the block")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_inference():
            raise InputError(
                f"'{name}' was made inside torch.inference_mode and can't be changed outside of it: build the module "
                "outside, or copy.deepcopy it there"
            )


def require_unrepaired(module: nn.Module) -> None:
    """Refuses a module that holds what an earlier repair wrote, of it or of a part of it."""
    names = repaired_parts(module)
    if names:
        where = f" (part '{names[0]}')" if names[0] else ""
        raise InputError(
            f"the module was repaired already{where}; repaired twice it computes something else: load its trained "
            "weights again"
        )


def write_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes all of the tensors, or none."""
    if not tensors:
        return
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    made: list[tuple[nn.Module, str]] = []
    written: dict[str, list[str]] = {}
    try:
        with torch.no_grad():
            for name, tensor in tensors.items():
                path, _, leaf = name.rpartition(".")
                written.setdefault(path, []).append(leaf)
                part = module.get_submodule(path)
                old = getattr(part, leaf)
                if old is None:
                    made.append((part, leaf))
                    part.register_parameter(leaf, nn.Parameter(tensor))
                else:
                    kept.append((old, old.detach().clone()))
                    old.copy_(tensor)
        for path, leaves in written.items():
            mark_repaired(module.get_submodule(path), leaves)
    except BaseException:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
        for part, leaf in made:
            part.register_parameter(leaf, None)
        raise
