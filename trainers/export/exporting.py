"""From something that was trained to what can be exported: a vsfix checkpoint, a factory, an ExportedProgram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.io.named_file import call_named_function
from vsfix.trainers.data.preprocessing import METADATA_KEY, Preprocessing
from vsfix.trainers.data.weights_file import FoundWeights, load_weights
from vsfix.trainers.training.checkpoint import Checkpoint

from .example_inputs import example_inputs
from .exported_program import deployed_program, program_inputs, require_deterministic
from .module_signature import ModuleInputs, as_inputs, bare_module, needed_arguments
from .onnx_export import ExportResult, export_onnx

DEFAULT_OPSET = 18
_EXAMPLES = 4


@dataclass(frozen=True, eq=False)
class Exportable:
    """A module, and the other inputs of an export.

    Attributes:
        module: with its weights.
        example: its inputs.
        metadata: of the file.
        weights: where they were taken from; None where they are the module's own.
        hidden: the noise that the module itself does not show.
    """

    module: nn.Module
    example: ModuleInputs
    metadata: Mapping[str, str] = field(default_factory=dict)
    weights: FoundWeights | None = None
    hidden: tuple[str, ...] = ()


def exportable_checkpoint(checkpoint: Checkpoint) -> Exportable:
    """The network of a checkpoint, with its preprocessing.

    Raises:
        ModelError: the weights don't belong to the network.
    """
    network = checkpoint.network
    example = as_inputs(_example((network.in_channels, *network.image_size)))
    return Exportable(checkpoint.build(), example, {METADATA_KEY: checkpoint.preprocessing.to_json()})


def exportable_factory(
    source: str,
    inputs: Sequence[str] | tuple[int, ...],
    weights: Path | None = None,
    weights_key: str | None = None,
) -> Exportable:
    """The module that `package.module:factory` returns. This runs the code of that module.

    Args:
        source: the function, which is called without arguments; the current folder is searched too.
        inputs: texts of `parse_input`, one for each input; or the shape of the one input without its batch axis.
        weights: a file that holds those of the module; None keeps the weights that the factory gave it.
        weights_key: where they are in it; see `load_weights`.

    Raises:
        InputError: the function, the weights or the inputs can't be used; a shape where the forward takes several.
    """
    module, found = module_of_factory(source, weights, weights_key)
    texts = [side for side in inputs if isinstance(side, str)]
    shape = tuple(side for side in inputs if isinstance(side, int))
    if not texts and len(needed := needed_arguments(module)) > 1:
        first, *others = needed
        options = [f"--input {first}:{'x'.join(map(str, ('N', *shape)))}", *(f"--input {name}:NxC" for name in others)]
        raise InputError(
            f"{type(module).__name__}.forward takes {', '.join(needed)}, and --input-shape describes one input; write "
            f"{' '.join(options)}, each with its own shape, and :int64:0..99 after that of an index"
        )
    example = example_inputs(module, texts) if texts else as_inputs(_example(shape))
    return Exportable(module, example, weights=found)


def exportable_program(program: torch.export.ExportedProgram, example: object = None) -> Exportable:
    """The module of an ExportedProgram, with its noise as layers.

    Args:
        program: of `torch.export.export`, in eval or in training mode.
        example: see `program_inputs`.

    Raises:
        InputError: an example that does not fit, or none.
        ModelError: see `deployed_program`.
    """
    module, hidden = deployed_program(program)
    inputs = program_inputs(program, example)
    require_deterministic(module, inputs)
    return Exportable(module, inputs, hidden=hidden)


def describe_images(
    inputs: ModuleInputs,
    mean: Sequence[float],
    std: Sequence[float],
    size: Sequence[int] | None = None,
    class_names: Sequence[str] = (),
) -> dict[str, str]:
    """The metadata that say how images become the input: y = (x / 255 - mean) / std.

    Args:
        inputs: of the module; one that takes images, (N, C, H, W).
        mean: one number, or one for each channel.
        std: likewise.
        size: height and width; None takes those of the input.
        class_names: in the order of the outputs.

    Raises:
        InputError: several inputs, no images, or numbers that don't fit them.
    """
    if len(inputs.tensors) != 1 or inputs.tensors[0].dim() != 4 or not inputs.tensors[0].is_floating_point():
        raise InputError(f"mean, std, size and class names go with one input of images, Nx3xHxW, not with {inputs}")
    shape, free = inputs.tensors[0].shape, inputs.axes[0]
    if size is None and free.keys() & {2, 3}:
        raise InputError("size: the input takes images of any size; say which one, as 224x224")
    height, width = size if size is not None else shape[2:]
    if any(axis not in free and side != shape[axis] for axis, side in ((2, height), (3, width))):
        raise InputError(f"size {height}x{width}: the input takes {shape[2]}x{shape[3]}")
    means, deviations = (tuple(values) * (shape[1] if len(values) == 1 else 1) for values in (mean, std))
    described = Preprocessing(shape[1], (height, width), means, deviations, tuple(class_names))
    return {METADATA_KEY: described.to_json()}


def module_of_factory(
    source: str, weights: Path | None = None, weights_key: str | None = None
) -> tuple[nn.Module, FoundWeights | None]:
    """The module alone; see `exportable_factory`."""
    module = bare_module(_make_module(source))
    if weights_key is not None and weights is None:
        raise InputError("--weights-key: goes with --weights")
    return module, None if weights is None else load_weights(module, weights, weights_key)


def export_checkpoint(
    checkpoint: Checkpoint, path: Path, *, opset: int = DEFAULT_OPSET, force: bool = False
) -> ExportResult:
    """Writes the network of a checkpoint, with its preprocessing in the metadata.

    Raises:
        InputError, ModelError, CheckFailedError, MissingComponentError: as `export_onnx`.
    """
    found = exportable_checkpoint(checkpoint)
    return export_onnx(found.module, found.example, path, opset=opset, metadata=found.metadata, force=force)


def _example(shape: tuple[int, ...]) -> torch.Tensor:
    """A batch of random inputs; shape (4, *shape)."""
    return torch.randn(_EXAMPLES, *shape, generator=torch.Generator().manual_seed(0))


def _make_module(source: str) -> nn.Module:
    """Imports and calls the factory."""
    module = call_named_function(source)
    if not isinstance(module, nn.Module):
        raise InputError(f"{source}: returns a {type(module).__name__}; it must return a torch.nn.Module")
    return module
