"""From something that was trained to an ONNX file: a vsfix checkpoint, or a module that a user's function makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from vsfix.graph_passes.errors import InputError, ModelError, first_line
from vsfix.graph_passes.io.named_file import current_folder_importable, named_function, why_unreadable
from vsfix.trainers.data.preprocessing import METADATA_KEY
from vsfix.trainers.data.torch_file import is_state_dict, read_torch_file
from vsfix.trainers.training.checkpoint import Checkpoint

from .onnx_export import ExportResult, export_onnx

DEFAULT_OPSET = 18
_EXAMPLES = 4
_SHOWN_KEYS = 3


@dataclass(frozen=True, eq=False)
class Exportable:
    """A module, and the other inputs of an export.

    Attributes:
        module: with its weights.
        example: a batch of inputs, shape (N, ...).
        metadata: of the file.
    """

    module: nn.Module
    example: torch.Tensor
    metadata: Mapping[str, str] = field(default_factory=dict)


def exportable_checkpoint(checkpoint: Checkpoint) -> Exportable:
    """The network of a checkpoint, with its preprocessing.

    Raises:
        ModelError: the weights don't belong to the network.
    """
    network = checkpoint.network
    example = _example((network.in_channels, *network.image_size))
    return Exportable(checkpoint.build(), example, {METADATA_KEY: checkpoint.preprocessing.to_json()})


def exportable_factory(source: str, input_shape: tuple[int, ...], weights: Path | None = None) -> Exportable:
    """The module that `package.module:factory` returns. This runs the code of that module.

    Args:
        source: the function, which is called without arguments; the current folder is searched too.
        input_shape: one input without its batch axis.
        weights: a `state_dict` that is loaded into the module; None keeps the weights that the factory gave it.

    Raises:
        InputError: the function or the weights can't be used.
    """
    module = _make_module(source)
    if weights is not None:
        _load_weights(module, weights)
    return Exportable(module, _example(input_shape))


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
    """Imports and calls the factory, which may import more while it runs."""
    factory = named_function(source)
    with current_folder_importable():
        try:
            module = factory()
        except Exception as error:  # the code of a user may raise anything
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{source}: fails when called without arguments ({reason})") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{source}: returns a {type(module).__name__}; it must return a torch.nn.Module")
    return module


def _load_weights(module: nn.Module, path: Path) -> None:
    """Loads a state_dict into a module; code in the file is refused."""
    if (reason := why_unreadable(path)) is not None:
        raise InputError(f"--weights {path}: {reason}")
    try:
        state = read_torch_file(path)
    except ModelError as error:
        raise InputError(f"--weights {error}; save module.state_dict()") from None
    if not is_state_dict(state):
        raise InputError(f"--weights {path}: holds no state_dict; save module.state_dict()")
    expected = set(module.state_dict())
    for what, keys in (("lacks", expected - set(state)), ("has too much:", set(state) - expected)):
        if keys:
            shown = ", ".join(sorted(keys)[:_SHOWN_KEYS])
            more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
            raise InputError(f"--weights {path}: {what} {shown}{more}; give the weights of this very module")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"--weights {path}: do not fit the module: {' '.join(str(error).split())}") from error
