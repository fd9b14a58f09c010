"""A torch module as an ONNX graph, its noise as opaque operators: traced by torch.export, written by torch.onnx.

Before: what a module must be to be exported, and the outputs that its file will be measured against.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import cast

import onnx
import torch
from torch import nn

from vsfix.graph_passes.errors import InputError, ModelError, first_line
from vsfix.graph_passes.noise.noise import Noise

from .noise_tracing import NoiseTracer, tracing_noise
from .onnx_cleaning import EXPORTER_OPSET, fold_constants

_MAX_BYTES = 2**31  # of one protobuf message
_CHATTY_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


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
        label = f"its part '{scripted[0]}'" if scripted[0] else "it"
        raise InputError(f"{type(module).__name__}: {label} is TorchScript; export the Python module it was made from")
    required = [
        parameter.name
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(required) > 1:
        raise InputError(
            f"{type(module).__name__}.forward takes several inputs ({', '.join(required)}); wrap it in a module that"
            " takes one tensor, or export it with torch.onnx.export in training mode (docs/export.md, several inputs)"
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
    """The outputs of the module in float64, or None where it can't (a forward that insists on float32).

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


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silences the libraries below: their notes on missing optional parts and on their own deprecations."""
    levels = [(logger, logger.level) for logger in map(logging.getLogger, _CHATTY_LOGGERS)]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def trace_module(
    module: nn.Module, rows: torch.Tensor, layers: Mapping[str, Noise]
) -> tuple[torch.export.ExportedProgram, NoiseTracer]:
    """The module as a graph of torch operators, with a free batch size, and the noise in it.

    Args:
        module: in eval mode.
        rows: an input, shape (N, ...), N of at least 2.
        layers: the noise that modules make by hand, by their names.

    Raises:
        InputError: noise that can't be marked.
        ModelError: torch can't trace the module.
    """
    # On an error torch prints the graph so far, whatever its loggers are set to.
    with tracing_noise(module, layers) as tracer, redirect_stderr(io.StringIO()):
        try:
            program = torch.export.export(
                module, (rows,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
            )
        except Exception as error:  # torch.export has no common class for what it refuses
            if tracer.error is not None:
                raise tracer.error from None
            reason = _reason(error)
            if "Constraints violated (batch)" in reason:
                reason = "its forward fixes the batch size; write x.shape[0] or -1 there instead of a number"
            raise ModelError(f"{type(module).__name__}: torch.export can't trace it: {reason}") from error
    return program, tracer


def convert_program(
    program: torch.export.ExportedProgram, opset: int, input_name: str, output_name: str
) -> onnx.ModelProto:
    """The program in ONNX, with the opaque operators still in it.

    Args:
        program: what was traced.
        opset: of the file; torch's exporter writes none below `EXPORTER_OPSET`, and the model has that one then.
        input_name: of the graph's input.
        output_name: of the graph's output.

    Raises:
        InputError: the installed exporter can't write the opset.
        ModelError: torch can't convert the program.
    """
    written = max(opset, EXPORTER_OPSET)
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            opset_version=written,
            verbose=False,
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes=({0: "batch"},),
        )
        model = fold_constants(cast("torch.onnx.ONNXProgram", exported).model)
    except Exception as error:  # nor has the ONNX exporter
        raise ModelError(f"torch.onnx can't convert the module: {_reason(error)}") from error
    found = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if found != written:
        raise InputError(f"opset {opset}: the installed onnxscript can't write it; take {EXPORTER_OPSET}")
    return model


def _reason(error: BaseException) -> str:
    """The first line of what started a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
