"""PyTorch, in eval mode and full float32."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import numpy as np
import torch
from torch import nn
from typing_extensions import Self

from vsfix.graph_passes.errors import DataError, InputError, MissingComponentError, ModelError
from vsfix.graph_passes.inference import Array
from vsfix.graph_passes.model_file import first_line

from .feeds import InputSpec, check_feeds

_STATISTICS = ("running_mean", "running_var")


class TorchRunner:
    """A module that takes one tensor and returns one.

    Attributes:
        name: `torch (DEVICE)`.
        concurrency: 1, see `Runner.concurrency`.

    Args:
        module: put into eval mode and moved to the device.
        input_name: the name under which the input is given.
        output_name: the name under which the output comes back.
        device: `cpu`, `cuda`, or `cuda:1` and so on.
        input_shape: of one input, without the batch, where only one is right: a network that pools over the image
            would take any size.

    Raises:
        MissingComponentError: torch sees no such device.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        input_name: str = "input",
        output_name: str = "logits",
        device: str = "cpu",
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.name = f"torch ({device})"
        self.concurrency = 1
        if device != "cpu" and not torch.cuda.is_available():
            raise MissingComponentError(
                f"torch: sees no GPU for device '{device}'; check the driver, and that torch is a CUDA build "
                "(https://pytorch.org/get-started/locally)"
            )
        self._device = torch.device(device)
        self._module = module.eval().to(self._device)
        shape = None if input_shape is None else (None, *input_shape)
        self._inputs = (InputSpec(input_name, np.float32, shape),)
        self._output_name = output_name

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one batch; see `Runner.run`.

        Raises:
            DataError: the array has another name or dtype, or the module does not take its shape.
            ModelError: the module returns something else than one tensor.
        """
        check_feeds(self._inputs, inputs)
        name = self._inputs[0].name
        # A copy, because the module may work in place, and a read-only array can't be shared with torch.
        batch = torch.from_numpy(np.array(inputs[name])).to(self._device)
        try:
            with torch.inference_mode(), full_float32(self._device):
                output = self._module(batch)
        except Exception as error:  # a forward is foreign code: it may raise anything
            raise DataError(
                f"input '{name}': the torch module refuses float32 {inputs[name].shape}: {first_line(error)}"
            ) from error
        if not isinstance(output, torch.Tensor):
            raise ModelError(f"{type(self._module).__name__} returns a {type(output).__name__}, not one tensor")
        return {self._output_name: output.float().cpu().numpy()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


def with_statistics(module: nn.Module, statistics: Mapping[str, Array]) -> nn.Module:
    """A copy of a module with other running statistics.

    Args:
        module: any module; not changed.
        statistics: running means and variances by their keys in the state_dict, shape (C,).

    Raises:
        InputError: nothing given, a key that the module does not have or that is no running statistic, another shape,
            or a value that no BatchNorm can hold.
    """
    if not statistics:
        raise InputError("statistics: there are none; `vsfix optimize --statistics` writes those that it repaired")
    changed = copy.deepcopy(module)
    state = changed.state_dict()
    for key, values in statistics.items():
        kind = key.rpartition(".")[2]
        if key not in state or kind not in _STATISTICS:
            raise InputError(f"statistics: '{key}' is no running statistic of {type(module).__name__}")
        if values.shape != tuple(state[key].shape):
            raise InputError(
                f"statistics: '{key}' has the shape {values.shape}, but the module's has {tuple(state[key].shape)}"
            )
        if values.dtype.kind != "f" or not np.isfinite(values).all() or (kind == "running_var" and values.min() < 0):
            raise InputError(f"statistics: '{key}' must hold finite numbers, a variance none below 0")
        # In place: the tensors of a state_dict are those of the module.
        state[key].copy_(torch.from_numpy(np.array(values)))
    return changed


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Switches TF32 off on a GPU: it keeps 10 of float32's 23 bits."""
    if device.type != "cuda":
        yield
        return
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision
