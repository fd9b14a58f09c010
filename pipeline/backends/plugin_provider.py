"""TensorRT-RTX as a plugin of ONNX Runtime: a package of NVIDIA's beside the plain `onnxruntime`.

ONNX Runtime loads the library of the package when it is told to, once for the process, and lists the GPUs that the
library runs on; a session takes one of them. The package brings TensorRT-RTX with it. It loads nothing without a
driver, and lists no GPU but those of compute capability 8.6, 8.9, and 12.0 and newer.

Source: https://github.com/NVIDIA/TensorRT-RTX-EP-ABI, and the package itself, version 0.5.
"""

from __future__ import annotations

import importlib
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vsfix.graph_passes.errors import MissingComponentError, first_line

TENSORRT_RTX = "NvTensorRTRTXExecutionProvider"
INSTALL_LINE = "pip install 'vsfix[rtx-plugin]'"
_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
_PACKAGES = ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12")
_GPUS = "of compute capability 8.6, 8.9, or 12.0 and newer"
_NO_LIBRARY = re.compile(r"cannot open shared object|\.dll|LoadLibrary|error 126", re.IGNORECASE)
_REGISTERED = "already registered"
# No engine is kept from one session to the next, and no graph: what is measured is what the file says, built anew.
OPTIONS = {"enable_cuda_graph": "0", "nv_runtime_cache_path": ""}


def plugin_version() -> str:
    """The version of the package, for the CUDA that it is installed for; empty where it is not."""
    for package in _PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""


def plugin_device(onnxruntime: Any) -> Any:
    """The first GPU that the plugin runs on; loads the plugin where that was not done yet.

    Args:
        onnxruntime: the module.

    Returns:
        An `OrtEpDevice`, for `SessionOptions.add_provider_for_devices`.

    Raises:
        MissingComponentError: the package is not installed, ONNX Runtime is too old for plugins, or there is no driver
            or no GPU for it here.
    """
    devices = _devices(onnxruntime, _load(onnxruntime))
    if not devices:
        raise MissingComponentError(
            f"onnxruntime: {TENSORRT_RTX} finds no GPU {_GPUS}, with a driver for its CUDA; check with nvidia-smi"
        )
    return devices[0]


def _load(onnxruntime: Any) -> str:
    """Registers the library of the package.

    Returns:
        The name under which it was registered.
    """
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise MissingComponentError(
            f"onnxruntime: {onnxruntime.__version__} takes no plugins, 1.24 does; run: {INSTALL_LINE}"
        )
    try:
        package = importlib.import_module(_MODULE)
        name, library = str(package.get_ep_name()), str(package.get_library_path())
    except ModuleNotFoundError:
        raise MissingComponentError(
            f"onnxruntime: {TENSORRT_RTX} is a plugin, which is not installed; run: {INSTALL_LINE}"
        ) from None
    except Exception as error:  # it loads libraries and makes links when it is imported
        raise MissingComponentError(
            f"onnxruntime: the plugin {TENSORRT_RTX} can't be loaded ({first_line(error)}); run: {INSTALL_LINE}"
        ) from error
    if _devices(onnxruntime, name):
        return name
    try:
        onnxruntime.register_execution_provider_library(name, library)
    except Exception as error:  # ONNX Runtime has one class of its own for each of its status codes
        if _REGISTERED not in str(error):
            raise MissingComponentError(_not_loaded(first_line(error), onnxruntime.__version__)) from error
    return name


def _devices(onnxruntime: Any, name: str) -> list[Any]:
    """The GPUs that a provider runs on, as far as it is registered."""
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]


def _not_loaded(said: str, runtime: str) -> str:
    """The message where the library of the plugin is not taken; the library that it lacks is named at the end."""
    cause = re.sub(r"^(\[ONNXRuntimeError\] : \d+ : \w+ : )?(.* with error: )?", "", said)
    if not _NO_LIBRARY.search(cause):
        return f"onnxruntime: {runtime} does not take the plugin {TENSORRT_RTX} ({cause}); run: {INSTALL_LINE}"
    return (
        f"onnxruntime: the plugin {TENSORRT_RTX} can't be loaded here ({cause}): it needs an NVIDIA GPU {_GPUS}, and "
        "its driver; check with nvidia-smi"
    )
