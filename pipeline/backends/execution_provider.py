"""The execution providers of ONNX Runtime, with everything pinned that changes numbers.

No TF32, no type that is not in the file, and convolutions chosen by rule and not by timing, which would choose another
one in the next session. The TensorRT provider takes the parts of a model that TensorRT can run; the rest runs on CUDA
beside it, and is told in the log. It takes types as a permission only: a float16 file is allowed float16 everywhere.
TensorRT-RTX is a plugin (`plugin_provider`), computes in the types of the file, and leaves the rest to the CPU.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from vsfix.graph_passes.errors import MissingComponentError, ModelError
from vsfix.graph_passes.io.local_functions import nodes_with_subgraphs

from .plugin_provider import INSTALL_LINE, OPTIONS, TENSORRT_RTX, plugin_device

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
_EXTRAS = {CPU: "cpu", CUDA: "gpu", TENSORRT: "gpu,tensorrt"}
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
_TENSORRT_OPTIONS = {"trt_fp16_enable": "0", "trt_int8_enable": "0", "trt_engine_cache_enable": "0"}
_PERMISSIONS = {onnx.TensorProto.FLOAT16: "trt_fp16_enable", onnx.TensorProto.BFLOAT16: "trt_bf16_enable"}
_TENSOR_FLOAT = "NVIDIA_TF32_OVERRIDE"
_LOGGER = logging.getLogger(__name__)


def install_line(provider: str) -> str:
    """The command that installs the ONNX Runtime which holds `provider`, or the plugin that is it."""
    return INSTALL_LINE if provider == TENSORRT_RTX else f"pip install 'vsfix[{_EXTRAS[provider]}]'"


def choose_provider(
    onnxruntime: Any, options: Any, provider: str, model: Path | onnx.ModelProto
) -> list[tuple[str, dict[str, str]]] | None:
    """Chooses the provider of a session.

    Args:
        onnxruntime: the module.
        options: of the session; a plugin is put into them.
        provider: `CPU`, `CUDA`, `TENSORRT` or `TENSORRT_RTX`.
        model: what will run.

    Returns:
        What the session takes as its providers; None where its options say it.

    Raises:
        MissingComponentError: this ONNX Runtime has no such provider, or there is no GPU for it.
        ModelError: the model holds an engine.
    """
    if provider == TENSORRT_RTX:
        device = plugin_device(onnxruntime)
        _refuse_engines(_read(model))
        options.add_provider_for_devices([device], dict(OPTIONS))
        return None
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise MissingComponentError(
            f"onnxruntime: this build has no {provider} (it has {', '.join(available)}); run: {install_line(provider)}"
        )
    return _provider_options(provider, model)


def _provider_options(provider: str, model: Path | onnx.ModelProto) -> list[tuple[str, dict[str, str]]]:
    """The providers that a session takes; TensorRT leaves to CUDA what it can't run."""
    if provider == CPU:
        return [(CPU, {})]
    if provider == CUDA:
        return [(CUDA, dict(_CUDA_OPTIONS))]
    model = _read(model)
    _refuse_engines(model)
    graph = model.graph
    types = {tensor.data_type for tensor in graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in graph.input}
    allowed = {option: "1" for kind, option in _PERMISSIONS.items() if kind in types}
    return [(TENSORRT, _TENSORRT_OPTIONS | allowed), (CUDA, dict(_CUDA_OPTIONS))]


def _read(model: Path | onnx.ModelProto) -> onnx.ModelProto:
    """The graph without weights that stand in other files."""
    return onnx.load(model, load_external_data=False) if isinstance(model, Path) else model


def _refuse_engines(model: onnx.ModelProto) -> None:
    """Refuses a model with an engine in it, which both TensorRT providers would load: an engine is code.

    Source: https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html
    """
    node_lists = (model.graph.node, *(function.node for function in model.functions))
    for node in nodes_with_subgraphs(node for nodes in node_lists for node in nodes):
        if node.op_type == "EPContext":
            raise ModelError(
                f"EPContext '{node.name or ', '.join(node.output)}' holds an engine, or names the file of one, and an "
                "engine in a model is never loaded; give the model that it was made of"
            )


@contextmanager
def without_tensor_float(provider: str) -> Iterator[None]:
    """Keeps TF32 out of the engines of both TensorRT providers, which have no option for it but this variable.

    The engines are built when a session is opened, and in a run with new shapes. A library keeps what it read first,
    and TensorRT-RTX wants it to be the same in the build and in the run.
    """
    if provider not in (TENSORRT, TENSORRT_RTX):
        yield
        return
    before = os.environ.get(_TENSOR_FLOAT)
    os.environ[_TENSOR_FLOAT] = "0"
    try:
        yield
    finally:
        del os.environ[_TENSOR_FLOAT]
        if before is not None:
            os.environ[_TENSOR_FLOAT] = before


def require_work(session: Any, provider: str) -> None:
    """Refuses a provider that took no node, as far as ONNX Runtime tells: from 1.24 on, where it was asked to.

    Raises:
        ModelError: naming those that took the nodes.
    """
    if provider == CPU or not hasattr(session, "get_provider_graph_assignment_info"):
        return
    taken: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        taken[part.ep_name] += len(part.get_nodes())
    others = ", ".join(f"{count} by {name}" for name, count in taken.items() if name != provider)
    if not taken[provider]:
        raise ModelError(f"onnxruntime: {provider} can run no node of the model ({others or 'it has none'})")
    if others:
        _LOGGER.warning("onnxruntime: %d nodes are run by %s, %s", taken[provider], provider, others)
