"""The CUDA runtime through cuda-python; no torch is needed.

cuda-python 12.6 and newer call the module `cuda.bindings.runtime`, older ones `cuda.cudart`; every function of both
returns its status first. The GPU is the first that `CUDA_VISIBLE_DEVICES` leaves visible.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from vsfix.graph_passes.errors import (
    SMALLER_BATCH,
    MissingComponentError,
    ModelError,
    VsfixError,
    device_fault,
    first_line,
)

INSTALL_LINE = "pip install cuda-python"
_MODULES = ("cuda.bindings.runtime", "cuda.cudart")
_LOGGER = logging.getLogger(__name__)


class Cuda:
    """The CUDA runtime on one GPU.

    Attributes:
        capability: the compute capability of the GPU, as `sm89`.

    Args:
        runtime: the module of cuda-python.

    Raises:
        MissingComponentError: there is no GPU, or no driver that this cuda-python can use.
    """

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        try:
            status, count = runtime.cudaGetDeviceCount()
        except Exception as error:  # cuda-python before 12.4 loads the driver here
            raise MissingComponentError(_no_gpu(first_line(error))) from error
        if int(status) or not count:
            raise MissingComponentError(_no_gpu(self._text(status) if int(status) else "none is visible"))
        device = self.call("cudaGetDevice")
        attributes = runtime.cudaDeviceAttr
        major, minor = (
            self.call("cudaDeviceGetAttribute", attribute, device)
            for attribute in (
                attributes.cudaDevAttrComputeCapabilityMajor,
                attributes.cudaDevAttrComputeCapabilityMinor,
            )
        )
        self.capability = f"sm{major}{minor}"

    def call(self, function: str, *arguments: Any) -> Any:
        """Calls a function of the runtime.

        Returns:
            What it returns behind the status; None where there is nothing.

        Raises:
            OutOfMemoryError: the memory of the GPU does not suffice.
            MissingComponentError: the GPU is lost.
            ModelError: any other status but success.
        """
        status, *values = getattr(self.runtime, function)(*arguments)
        if int(status):
            said = self._text(status)
            fault = device_fault(RuntimeError(f"CUDA error: {said}"), f"CUDA: {function}", SMALLER_BATCH)
            raise fault or ModelError(f"CUDA: {function} fails: {said}")
        return values[0] if values else None

    def release(self, function: str, resource: Any) -> None:
        """Gives something back; what fails here has failed before, and is only logged."""
        try:
            self.call(function, resource)
        except VsfixError as error:
            _LOGGER.debug("%s", error)

    def _text(self, status: Any) -> str:
        """A status in words."""
        _, text = self.runtime.cudaGetErrorString(status)
        return text.decode() if isinstance(text, bytes) else str(text)


def open_cuda() -> Cuda:
    """The CUDA runtime.

    Raises:
        MissingComponentError: cuda-python is not installed, or there is no GPU and driver for it.
    """
    for module in _MODULES:
        try:
            runtime = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        except Exception as error:  # the loading of libraries raises what it likes
            raise MissingComponentError(
                f"cuda-python can't be loaded: {first_line(error)}; run: {INSTALL_LINE}"
            ) from error
        return Cuda(runtime)
    raise MissingComponentError(f"cuda-python is not installed; run: {INSTALL_LINE}")


def visible_capability() -> str | None:
    """The compute capability of the GPU, as `sm89`; None where none can be asked."""
    try:
        return open_cuda().capability
    except VsfixError:
        return None


def _no_gpu(said: str) -> str:
    """The message where no GPU can be used."""
    return (
        f"CUDA: no NVIDIA GPU and driver here that cuda-python can use ({said}); check with nvidia-smi, and install "
        "the cuda-python of the CUDA version that it shows, as pip install 'cuda-python<13'"
    )
