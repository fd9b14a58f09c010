"""The two files of a torch module: one that marks its noise, and one as users have it, without."""

from __future__ import annotations

import io
import warnings

import onnx
import torch
from real_entry import Array
from torch import nn

import vsfix


def both_files(module: nn.Module, example: Array) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """By `vsfix.export`, every BatchNorm kept and the noise marked; and by `torch.onnx.export`, the noise lost."""
    marked = vsfix.export(module.eval(), torch.from_numpy(example)).model
    (given,), (answer,) = marked.graph.input, marked.graph.output
    return marked, lost_noise(module, example, given.name, answer.name)


def lost_noise(module: nn.Module, example: Array, given: str, answer: str) -> onnx.ModelProto:
    """By `torch.onnx.export` in eval mode without its optimizer: every BatchNorm kept, the noise lost."""
    held = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (torch.from_numpy(example),),
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=[given],
            output_names=[answer],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    program.save(held)
    return onnx.load_from_string(held.getvalue())


def input_name(model: onnx.ModelProto) -> str:
    """The one input."""
    (given,) = model.graph.input
    return str(given.name)
