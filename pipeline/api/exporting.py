"""`vsfix.export` and its result: a trained network as an ONNX model that keeps the evidence of its noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
from torch import nn

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.model_file import write_model
from vsfix.graph_passes.ir.runtime import Array
from vsfix.pipeline.backends.opening import checkpoint_file
from vsfix.pipeline.host.console import PIPE_WIDTH, View
from vsfix.trainers.export.exporting import (
    DEFAULT_OPSET,
    Exportable,
    exportable_checkpoint,
    exportable_factory,
)
from vsfix.trainers.export.onnx_export import ExportResult, convert_module
from vsfix.trainers.training.checkpoint import Checkpoint, load_checkpoint

from .arguments import files_read, whole_number, whole_numbers
from .results import Result

Source = nn.Module | Checkpoint | str | Path


@dataclass(frozen=True)
class Export(ExportResult, Result):
    """An exported model, and how near it is to torch.

    The attributes are those of `vsfix.trainers.export.onnx_export.ExportResult`, and:

    Attributes:
        model: every BatchNorm kept, every noise layer marked.
        notes: what a person should know of the weights.
    """

    command: ClassVar[str] = "export"

    model: onnx.ModelProto = field(kw_only=True, repr=False)
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The evidence that the file does not show, and the parts that it does not hold."""
        untracked = (
            (
                f"{len(self.untracked)} BatchNorms keep no statistics ('{self.untracked[0]}' the first, "
                "track_running_stats=False): the file's answer for a sample depends on the others of its batch",
            )
            if self.untracked
            else ()
        )
        return (*self.notes, *untracked, *(f"not marked: {description}" for description in self.unmarked))

    @property
    def status(self) -> str:
        """PASS, or WARN where there are warnings."""
        return "WARN" if self.warnings else "PASS"

    @property
    def verdict(self) -> str:
        """How near the model is to torch, in one sentence."""
        snr = "exact" if self.snr_db == float("inf") else f"{self.snr_db:.1f} dB"
        return f"against torch: SNR {snr}, largest error {self.max_abs_error:.2g}"

    def save(self, path: str | Path, force: bool = False) -> None:
        """Writes the model.

        Args:
            path: the ONNX file.
            force: an existing file may be replaced.

        Raises:
            OutputExistsError, InputError: the file exists and `force` is not given, it can't be written, or was read.
        """
        self.require_outputs(path, force=force)
        write_model(self.model, Path(path), force=force)

    def _judgement(self) -> tuple[str, str, Sequence[str]]:
        """The status word, the verdict and the warnings."""
        return self.status, self.verdict, self.warnings

    def _details(self) -> Mapping[str, Any]:
        """The fields of the JSON document beside the envelope."""
        shown = {part.name: getattr(self, part.name) for part in fields(ExportResult) if part.name != "path"}
        return shown | {"markers": [{"name": name, **asdict(noise)} for name, noise in self.markers]}

    def view(self, width: int = PIPE_WIDTH) -> View:
        """The lines and tables of the terminal, in lines of so many letters."""
        for note in self.notes:
            yield f"WARN {note}"
        yield f"BatchNorms kept: {len(self.batch_norms)}"
        yield f"noise layers marked: {len(self.markers)}"
        for name, noise in self.markers:
            yield f"  {name} {noise}"
        for warning in self.warnings[len(self.notes) :]:
            yield f"WARN {warning}"
        yield self.verdict


def export(
    source: Source,
    example_inputs: torch.Tensor | Array | None = None,
    *,
    opset: int = DEFAULT_OPSET,
    weights: str | Path | None = None,
    input_shape: Sequence[int] | None = None,
) -> Export:
    """Makes an ONNX model of a network, every BatchNorm kept and every noise layer marked, checked against torch.

    Args:
        source: a `torch.nn.Module` in float32 on the CPU, which takes one tensor, batch first, and returns one; or a
            vsfix checkpoint, its path, or the folder of its run; or the text `package.module:factory`, which names a
            function without arguments that returns a module. Only the last runs code that was not imported yet.
        example_inputs: for a module: a batch of inputs, shape (N, ...); the model takes any batch size.
        opset: 15 to 25.
        weights: for a factory: a file with the `state_dict` of its module; None keeps what the factory gave it.
        input_shape: for a factory: one input without the batch axis.

    Returns:
        The model, and how near it is to torch; `save` writes it.

    Raises:
        InputError: a network, an example or an option that can't be used as it is.
        ModelError: torch can't trace the network, or it can't be converted.
        CheckFailedError: the model computes something else than torch.
        MissingComponentError: ONNX Runtime is not installed.
    """
    opset = whole_number("opset", opset)
    notes: tuple[str, ...] = ()
    if isinstance(source, nn.Module):
        _refuse("weights and input_shape go with a factory", weights, input_shape)
        found = Exportable(source, _example(example_inputs))
    elif is_factory(source):
        _refuse("example_inputs go with a module; a factory has input_shape", example_inputs)
        if input_shape is None:
            raise InputError(f"{source}: a factory needs input_shape, as (3, 32, 32)")
        found = exportable_factory(
            str(source), whole_numbers("input_shape", input_shape), None if weights is None else Path(weights)
        )
        if weights is None:
            notes = (f"no --weights: the file holds those that {source} gave the module",)
    elif isinstance(source, Checkpoint | str | Path):
        _refuse("a checkpoint has its own weights and inputs", example_inputs, weights, input_shape)
        checkpoint = source if isinstance(source, Checkpoint) else load_checkpoint(checkpoint_file(Path(source)))
        found = exportable_checkpoint(checkpoint)
    else:
        raise InputError(
            f"a {type(source).__name__} can't be exported; give a torch.nn.Module, a checkpoint or "
            "package.module:factory"
        )
    model, result = convert_module(found.module, found.example, opset=opset, metadata=found.metadata)
    known = {part.name: getattr(result, part.name) for part in fields(result)}
    return Export(
        **known, model=model, notes=notes, files_read=files_read([None if is_factory(source) else source, weights])
    )


def is_factory(source: Source) -> bool:
    """Whether it is a text that names a function, and no file of that name is there."""
    return isinstance(source, str) and ":" in source and not Path(source).exists()


def _refuse(reason: str, *given: object) -> None:
    """Refuses arguments that another kind of source takes."""
    if any(value is not None for value in given):
        raise InputError(f"{reason}; leave them out")


def _example(inputs: torch.Tensor | Array | None) -> torch.Tensor:
    """A batch of inputs as torch takes it."""
    if isinstance(inputs, tuple | list) and len(inputs) == 1:
        (inputs,) = inputs
    if isinstance(inputs, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(inputs))
    if not isinstance(inputs, torch.Tensor):
        raise InputError("example_inputs: give a batch of inputs of the module, a tensor of shape (N, ...)")
    return inputs
