"""A torch module as an ONNX graph, its noise as opaque operators: traced by torch.export, written by torch.onnx."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import cast

import onnx
import torch
from torch import nn

from vsfix.graph_passes.errors import InputError, ModelError, first_line
from vsfix.graph_passes.noise import Noise

from .noise_tracing import NoiseTracer, tracing_noise
from .onnx_cleaning import EXPORTER_OPSET, fold_constants

_CHATTY_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


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
