"""`vsfix.export` and its result: a trained network as an ONNX model that keeps the evidence of its noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import onnx
import torch
from torch import nn

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.model_file import write_model
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.progress import stage
from vsfix.pipeline.backends.model_kind import names_factory
from vsfix.pipeline.backends.opening import checkpoint_file
from vsfix.pipeline.data.fitting import Normalization
from vsfix.pipeline.host.console import View
from vsfix.trainers.export.example_inputs import given_inputs
from vsfix.trainers.export.exporting import (
    DEFAULT_OPSET,
    Exportable,
    describe_images,
    exportable_checkpoint,
    exportable_factory,
    exportable_program,
)
from vsfix.trainers.export.module_signature import bare_module
from vsfix.trainers.export.onnx_export import ExportResult, convert_module
from vsfix.trainers.training.checkpoint import Checkpoint, load_checkpoint

from .arguments import Numbers, files_read, normalization_of, texts, whole_number, whole_numbers
from .results import Result

Source = nn.Module | torch.export.ExportedProgram | Checkpoint | str | Path
Example = torch.Tensor | Array | Sequence[Any] | Mapping[str, Any]
_FACTORY_ONLY = "weights, weights_key, inputs and input_shape go with a factory"


@dataclass(frozen=True)
class Export(ExportResult, Result):
    """An exported model, and how near it is to torch.

    The attributes are those of `vsfix.trainers.export.onnx_export.ExportResult`, and:

    Attributes:
        model: every BatchNorm kept, every noise layer marked.
        notes: what a person should know of the weights.
        weights: the file and the place in it that the weights are from; empty where they are the module's own.
    """

    command: ClassVar[str] = "export"

    model: onnx.ModelProto = field(kw_only=True, repr=False)
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    weights: str = field(default="", kw_only=True)

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
        unbatched = (
            (
                f"the outputs {', '.join(self.unbatched)} do not have the batch as their first axis: vsfix verify and"
                " vsfix optimize compare outputs sample by sample",
            )
            if self.unbatched
            else ()
        )
        return (*self.notes, *untracked, *unbatched, *(f"not marked: {description}" for description in self.unmarked))

    @property
    def status(self) -> str:
        """PASS, or WARN where there are warnings."""
        return "WARN" if self.warnings else "PASS"

    @property
    def verdict(self) -> str:
        """How near the model is to torch, in one sentence."""
        snr = "exact" if self.snr_db == float("inf") else f"{self.snr_db:.1f} dB"
        where = f" in output {self.worst_output}" if len(self.outputs) > 1 else ""
        return f"against torch: SNR {snr}{where}, largest error {self.max_abs_error:.2g}"

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
        return shown | {
            "markers": [{"name": name, **asdict(noise)} for name, noise in self.markers],
            "outputs": [asdict(output) for output in self.outputs],
            "weights": self.weights,
        }

    def view(self) -> View:
        """The lines and tables of the terminal."""
        for note in self.notes:
            yield f"WARN {note}"
        if self.weights:
            yield f"weights: {self.weights}"
        if len(self.inputs) > 1 or len(self.outputs) > 1:
            yield f"inputs: {', '.join(self.inputs)}; outputs: {', '.join(each.output for each in self.outputs)}"
        yield f"BatchNorms kept: {len(self.batch_norms)}"
        yield f"noise layers marked: {len(self.markers)}"
        for name, noise in self.markers:
            yield f"  {name} {noise}"
        for warning in self.warnings[len(self.notes) :]:
            yield f"WARN {warning}"
        yield self.verdict


@stage("export")
def export(
    source: Source,
    example_inputs: Example | None = None,
    *,
    opset: int = DEFAULT_OPSET,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    inputs: str | Sequence[str] = (),
    input_shape: Sequence[int] | None = None,
    dynamic_shapes: Mapping[str, Any] | Sequence[Any] | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    size: int | Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
) -> Export:
    """Makes an ONNX model of a network, every BatchNorm kept and every noise layer marked, checked against torch.

    Args:
        source: a `torch.nn.Module` in float32 on the CPU; or what `torch.export.export` gave; or a vsfix checkpoint,
            its path, or the folder of its run; or the text `package.module:factory`, which names a function without
            arguments that returns a module. Only the last runs code that was not imported yet.
        example_inputs: for a module: a tensor, a tuple of the arguments of its forward in order, or a dict of them by
            name, each with the batch as its first axis. An ExportedProgram holds its own.
        opset: 15 to 25.
        weights: for a factory: a checkpoint that holds the weights of its module, of `torch.save` or safetensors; None
            keeps what the factory gave it.
        weights_key: where they are in it, as `ema` or `state_dict.model`, where there are several.
        inputs: for a factory: `NAME:SHAPE[:DTYPE[:LOW..HIGH]]` for each input, as `--input` takes it.
        input_shape: for a factory of one float32 input: its shape without the batch axis.
        dynamic_shapes: for a module: the free axes of each input, by its name or in order, a dict from the axis to a
            name or a `torch.export.Dim`. None frees the first axis of each, the batch.
        mean: of images, for pixels between 0 and 1, one number or one for each channel; written into the file with the
            next three, so that it takes data sets by their names.
        std: the deviation, likewise.
        size: height and width, one number for both; None takes those of the input.
        class_names: of the classes, in the order of the first output.

    Returns:
        The model, and how near it is to torch; `save` writes it.

    Raises:
        InputError: a network, an example or an option that can't be used as it is.
        ModelError: torch can't trace the network, or it can't be converted.
        CheckFailedError: the model computes something else than torch.
        MissingComponentError: ONNX Runtime is not installed.
    """
    opset = whole_number("opset", opset)
    said = normalization_of(mean, std, size)
    names = () if class_names is None else texts("class_names", class_names)
    notes: tuple[str, ...] = ()
    of_factory = (weights, weights_key, inputs or None, input_shape)
    if isinstance(source, nn.Module):
        _refuse(_FACTORY_ONLY, *of_factory)
        module = bare_module(source)
        found = Exportable(module, given_inputs(module, example_inputs, dynamic_shapes))
    elif isinstance(source, torch.export.ExportedProgram):
        _refuse(f"an ExportedProgram has its own free axes; {_FACTORY_ONLY}", *of_factory, dynamic_shapes)
        found = exportable_program(source, example_inputs)
    elif names_factory(source):
        _refuse("example_inputs and dynamic_shapes go with a module", example_inputs, dynamic_shapes)
        found = _from_factory(str(source), weights, weights_key, texts("inputs", inputs), input_shape)
        notes = _weight_notes(str(source), found)
    elif isinstance(source, Checkpoint | str | Path):
        _refuse("a checkpoint has its own weights and inputs", example_inputs, dynamic_shapes, *of_factory)
        _refuse("a checkpoint has its own preprocessing", mean, std, size, class_names)
        checkpoint = source if isinstance(source, Checkpoint) else load_checkpoint(checkpoint_file(Path(source)))
        found = exportable_checkpoint(checkpoint)
    else:
        raise InputError(
            f"a {type(source).__name__} can't be exported; give a torch.nn.Module, an ExportedProgram, a checkpoint or "
            "package.module:factory"
        )
    metadata = {**found.metadata, **_image_metadata(found, said, names)}
    model, result = convert_module(found.module, found.example, opset=opset, metadata=metadata, hidden=found.hidden)
    _require_names_of(model, names)
    known = {part.name: getattr(result, part.name) for part in fields(result)}
    is_file = isinstance(source, str | Path) and not names_factory(source)
    return Export(
        **known,
        model=model,
        notes=notes,
        weights="" if found.weights is None else found.weights.source,
        files_read=files_read([source if is_file else None, weights]),
    )


def _from_factory(
    source: str,
    weights: str | Path | None,
    weights_key: str | None,
    inputs: tuple[str, ...],
    input_shape: Sequence[int] | None,
) -> Exportable:
    """The module of a factory."""
    if bool(inputs) == (input_shape is not None):
        raise InputError(f"{source}: a factory needs inputs, as 'image:Nx3x32x32', or input_shape, as (3, 32, 32)")
    shape = () if input_shape is None else whole_numbers("input_shape", input_shape)
    return exportable_factory(source, inputs or shape, None if weights is None else Path(weights), weights_key)


def _weight_notes(source: str, found: Exportable) -> tuple[str, ...]:
    """What a person should know of the weights."""
    if found.weights is None:
        return (f"no --weights: the file holds those that {source} gave the module",)
    if not found.weights.averages:
        return ()
    averages = ", ".join(found.weights.averages)
    return (f"the file of the weights holds averages too ({averages}), which were left; --weights-key takes them",)


def _image_metadata(found: Exportable, said: Normalization, class_names: tuple[str, ...]) -> dict[str, str]:
    """How images become the input, where that is said."""
    if said == Normalization() and not class_names:
        return {}
    if said.mean is None or said.std is None:
        raise InputError("mean and std: give both, one number or one for each channel, for pixels between 0 and 1")
    return describe_images(found.example, said.mean, said.std, said.size, class_names)


def _require_names_of(model: onnx.ModelProto, class_names: tuple[str, ...]) -> None:
    """Refuses names that are not as many as the classes of the first output; one number decides between two."""
    output = model.graph.output[0]
    sides = [side.dim_value for side in output.type.tensor_type.shape.dim]
    classes = {0: 0, 1: 2}.get(sides[1], sides[1]) if len(sides) > 1 else 0
    if class_names and classes not in (0, len(class_names)):
        raise InputError(f"class_names: {len(class_names)} names for the {classes} classes of output '{output.name}'")


def _refuse(reason: str, *given: object) -> None:
    """Refuses arguments that another kind of source takes."""
    if any(value is not None for value in given):
        raise InputError(f"{reason}; leave them out")
