"""PyTorch, in eval mode and full float32, as it is or compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType

import numpy as np
import torch
from torch import nn
from typing_extensions import Self

from vsfix.graph_passes.errors import (
    SMALLER_BATCH,
    DataError,
    InputError,
    MissingComponentError,
    ModelError,
    device_fault,
    first_line,
)
from vsfix.graph_passes.ir.runtime import Array
from vsfix.trainers.export.module_signature import OUTPUT, output_tensors, takes_by_name
from vsfix.trainers.export.noise_reach import copy_module

from .feeds import InputSpec, check_feeds

_REPAIRED = ("running_mean", "running_var", "weight", "bias")
_NO_COMPILER = {
    "InvalidCxxCompiler": "a C++ compiler (Debian: apt-get install g++)",
    "TritonMissing": "triton (pip install triton)",
}


class TorchRunner:
    """A module as a model: arrays by name, as its forward takes them, and its tensors by the names of an export.

    Attributes:
        name: `torch (DEVICE)`, or `torch-compile (DEVICE)`.
        concurrency: 1, see `Runner.concurrency`.

    Args:
        module: put into eval mode and moved to the device.
        input_name: the name under which the input is given, where there is one.
        output_name: the name under which the output comes back, where it is one without a name of its own.
        device: `cpu`, `cuda`, or `cuda:1` and so on.
        input_shape: of one input, without the batch, where only one is right: a network that pools over the image
            would take any size.
        inputs: those of a module that may take several; they are given to the arguments of their names, else in order.
        compiled: run it through torch.compile, as one graph: a part that can't be compiled is an error. The first run
            with another shape takes seconds.

    Raises:
        MissingComponentError: torch sees no such device.
        InputError: the forward does not take these inputs.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        input_name: str = "input",
        output_name: str = "logits",
        device: str = "cpu",
        input_shape: tuple[int, ...] | None = None,
        inputs: Sequence[InputSpec] = (),
        compiled: bool = False,
    ) -> None:
        self.name = f"torch-compile ({device})" if compiled else f"torch ({device})"
        self.concurrency = 1
        if device != "cpu" and not torch.cuda.is_available():
            raise MissingComponentError(
                f"torch: sees no GPU for device '{device}'; check the driver, and that torch is a CUDA build "
                "(https://pytorch.org/get-started/locally)"
            )
        self._device = torch.device(device)
        self._module = module.eval().to(self._device)
        shape = None if input_shape is None else (None, *input_shape)
        self._inputs = tuple(inputs) or (InputSpec(input_name, np.float32, shape),)
        names = [spec.name for spec in self._inputs]
        self._by_name = bool(inputs) and takes_by_name(module, names)
        self._output_name = output_name
        self._compiled = torch.compile(self._module, fullgraph=True) if compiled else None
        self._taken: set[tuple[tuple[int, ...], ...]] = set()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one batch; see `Runner.run`.

        Raises:
            DataError: the array has another name or dtype, or the module does not take its shape.
            OutOfMemoryError: the memory of the device does not hold what the batch needs.
            ModelError: the module returns something else than tensors, or can't be compiled.
            MissingComponentError: torch.compile lacks a compiler, or the GPU is lost.
        """
        check_feeds(self._inputs, inputs)
        arrays = {spec.name: inputs[spec.name] for spec in self._inputs}
        shapes = tuple(array.shape for array in arrays.values())
        with torch.inference_mode(), full_float32(self._device):
            if self._compiled is None:
                output = self._call(arrays)
            else:
                if shapes not in self._taken:  # what torch itself refuses is no fault of the compiler
                    self._call(arrays)
                    self._taken.add(shapes)
                output = self._call_compiled(self._compiled, arrays)
        try:
            found = output_tensors(output, type(self._module).__name__, list(arrays))
        except InputError as error:
            raise ModelError(str(error)) from None
        return {self._output_name if name == OUTPUT else name: _as_array(tensor) for name, tensor in found.items()}

    def _call(self, arrays: Mapping[str, Array]) -> object:
        """The output of the module itself."""
        try:
            return self._apply(self._module, arrays)
        except Exception as error:  # a forward is foreign code: it may raise anything
            self._require_device(error, arrays)
            given = ", ".join(f"{array.dtype} {array.shape}" for array in arrays.values())
            names = "', '".join(arrays)
            what = f"input{'s' if len(arrays) > 1 else ''} '{names}'"
            raise DataError(f"{what}: the torch module refuses {given}: {first_line(error)}") from error

    def _call_compiled(self, compiled: Callable[..., object], arrays: Mapping[str, Array]) -> object:
        """The output of the compiled module; compiles it where the shapes are new."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, of parts of itself
                return self._apply(compiled, arrays)
        except Exception as error:  # the compiler is several, and each has errors of its own
            cause = getattr(error, "inner_exception", error)
            self._require_device(cause, arrays)
            what = f"torch.compile fails: {type(cause).__name__}: {first_line(cause)}"
            if type(cause).__name__ in _NO_COMPILER:
                raise MissingComponentError(f"{what}; install {_NO_COMPILER[type(cause).__name__]}") from error
            raise ModelError(f"{what}; run it with --backend torch") from error

    def _apply(self, function: Callable[..., object], arrays: Mapping[str, Array]) -> object:
        """Calls the module, or what was compiled of it."""
        tensors = {name: self._batch(array) for name, array in arrays.items()}
        return function(**tensors) if self._by_name else function(*tensors.values())

    def _require_device(self, error: BaseException, arrays: Mapping[str, Array]) -> None:
        """Raises where an error is the device's and not the module's."""
        samples = len(next(iter(arrays.values())))
        fault = device_fault(error, f"{self.name}, batch of {samples}", SMALLER_BATCH)
        if fault is not None:
            raise fault from error

    def _batch(self, array: Array) -> torch.Tensor:
        """A copy, because a module may work in place, and a read-only array can't be shared with torch."""
        return torch.from_numpy(np.array(array)).to(self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._compiled is not None:
            torch.compiler.reset()  # what was compiled counts against a limit of the process until then


def _as_array(tensor: torch.Tensor) -> Array:
    """An output as numpy has it, floating-point numbers in float32."""
    array: Array = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return array


def with_statistics(module: nn.Module, statistics: Mapping[str, Array]) -> nn.Module:
    """A copy of a module with other running statistics, scales, shifts, weights and biases.

    Args:
        module: any module; not changed.
        statistics: what a repair changed, by its keys in the state_dict, of the shapes there.

    Raises:
        InputError: nothing given, a key that the module does not have or that no repair changes, another shape,
            or a value that no BatchNorm can hold.
    """
    if not statistics:
        raise InputError("statistics: there are none, for nothing was repaired; leave them out")
    changed = copy_module(module)
    state = changed.state_dict()
    for key, values in statistics.items():
        kind = key.rpartition(".")[2]
        if key not in state or kind not in _REPAIRED:
            raise InputError(f"statistics: '{key}' is no running statistic, weight or bias of {type(module).__name__}")
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
