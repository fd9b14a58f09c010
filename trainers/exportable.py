"""What a torch module must be to be exported, and the outputs that its file will be measured against."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence

import torch
from torch import nn

from vsfix.graph_passes.errors import InputError, ModelError, first_line

_MAX_BYTES = 2**31  # of one protobuf message


def require_exportable(module: nn.Module, example: torch.Tensor) -> None:
    """Refuses what can be known to be wrong before the module runs.

    Raises:
        InputError: no batch, several inputs, another dtype than float32, another device than the CPU, 2 GiB, or
            TorchScript.
    """
    if example.dim() < 1 or len(example) == 0:
        raise InputError(f"the example has shape {tuple(example.shape)}; give a batch of at least one input")
    scripted = [name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if scripted:
        place = f"its part '{scripted[0]}'" if scripted[0] else "it"
        raise InputError(f"{type(module).__name__}: {place} is TorchScript; export the Python module it was made from")
    required = [
        parameter.name
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(required) > 1:
        raise InputError(
            f"{type(module).__name__}.forward takes several inputs ({', '.join(required)}); wrap it in a module that"
            " takes one tensor"
        )
    state = [*module.parameters(), *module.buffers(), example]
    dtypes = {tensor.dtype for tensor in state if tensor.is_floating_point()} - {torch.float32}
    if dtypes:
        raise InputError(f"the module or the example is {dtypes.pop()}; convert both with .float() before the export")
    devices = {tensor.device.type for tensor in state} - {"cpu"}
    if devices:
        raise InputError(f"the module or the example is on {devices.pop()}; move both with .cpu() before the export")
    if sum(tensor.numel() * tensor.element_size() for tensor in state) >= _MAX_BYTES:
        raise InputError("the module's weights take 2 GiB or more, which one ONNX file can't hold")


def torch_references(module: nn.Module, rows: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of input and torch's output, for the whole batch and for its first row.

    Args:
        module: in eval mode.
        rows: at least two inputs, shape (N, ...).

    Raises:
        InputError: the output is no tensor, has no batch axis, or is not finite.
        ModelError: the module fails on the rows.
    """
    pairs = [(rows, _run(module, rows)), (rows[:1], _run(module, rows[:1]))]
    shapes = [tuple(out.shape) for _, out in pairs]
    tail = shapes[0][1:]
    if shapes != [(len(rows), *tail), (1, *tail)]:
        raise InputError(
            f"{type(module).__name__} gives shape {shapes[0]} for {len(rows)} inputs and {shapes[1]} for one: the batch"
            " must stay the first axis (a squeeze() without its axis is the usual reason)"
        )
    if not all(out.isfinite().all() for _, out in pairs):
        raise InputError(f"{type(module).__name__} gives values that are not finite on the example; give a real input")
    return pairs


def float64_references(module: nn.Module, rows: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
    """What the module computes in float64, or None where it can't (a forward that insists on float32).

    Args:
        module: in eval mode; not changed.
        rows: batches of inputs, shape (N, ...), of any float type.
    """
    try:
        double = copy.deepcopy(module).double()
        return [_run(double, batch.double()) for batch in rows]
    except Exception:  # a copy, and a forward in another type, may fail in any way; float32 did not
        return None


def _run(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    try:
        out = module(rows.clone())
    except Exception as error:  # a forward is foreign code: it may raise anything
        raise ModelError(
            f"{type(module).__name__} fails on an input of shape {tuple(rows.shape)}: {first_line(error)}"
        ) from error
    if not isinstance(out, torch.Tensor):
        raise InputError(
            f"{type(module).__name__} returns a {type(out).__name__}; wrap it in a module that returns one tensor"
        )
    return out
