"""ONNX Runtime, on one provider and no other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
from google.protobuf.message import EncodeError
from typing_extensions import Self

from vsfix.graph_passes.errors import SMALLER_BATCH, MissingComponentError, ModelError, device_fault, first_line
from vsfix.graph_passes.io.external_data import detach_weights, fits_one_file
from vsfix.graph_passes.io.file_values import refer_to_file
from vsfix.graph_passes.ir.runtime import Array, OpenModel, Runner
from vsfix.graph_passes.ir.stored_values import file_of, offset_of, values_of
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.measurement.resident_memory import FreedMemory
from vsfix.trainers.export.onnxruntime_library import import_onnxruntime

from .execution_provider import CPU, choose_provider, install_line, require_work, without_tensor_float
from .feeds import InputSpec, check_feeds

_SILENT = 4
_LARGE_INPUT = 1 << 16  # bytes of a run, whose activations would stay with the process in pieces
_GROWTH = 1 << 22, 1 << 28  # bytes by which a process may grow with what small runs free, at least and at most
_GROWTH_SHARE = 8  # it is this part of the limit
_FLOAT8 = frozenset({onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2})
_DTYPES: Mapping[str, npt.DTypeLike] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


class OnnxRuntimeRunner:
    """An ONNX Runtime session.

    The same input gives the same bits every time on the CPU.

    Attributes:
        name: `onnxruntime (PROVIDER)`.
        concurrency: how many threads may call `run` at once; see `Runner.concurrency`.

    Args:
        model: a file, or a model in memory.
        provider: the execution provider that must run the model, one of those in `execution_provider` or
            `plugin_provider`.
        concurrency: None for one large run at a time; a number for small runs, so many at once.
        freed: gives back what small runs freed.

    Raises:
        MissingComponentError: ONNX Runtime or the provider is not here.
        ModelError: ONNX Runtime can't load the model, or the provider can run no part of it.
    """

    def __init__(
        self,
        model: Path | onnx.ModelProto,
        *,
        provider: str = CPU,
        concurrency: int | None = None,
        freed: FreedMemory | None = None,
    ) -> None:
        self._freed = freed
        self.concurrency = concurrency or 1
        self._has_arena = concurrency is None
        self.name = f"onnxruntime ({provider})"
        self._provider = provider
        self._session: Any
        with without_tensor_float(provider):
            self._session, self._weights = _open_session(model, provider, concurrency)
        running = self._session.get_providers()[0]
        if running != provider:
            raise MissingComponentError(
                f"onnxruntime: {provider} did not start here and {running} took its place; check the driver and the "
                f"CUDA libraries, or run: {install_line(provider)}"
            )
        require_work(self._session, provider)
        self._inputs = [_spec(tensor) for tensor in self._session.get_inputs()]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one batch; see `Runner.run`.

        Raises:
            DataError: the arrays don't fit the model's inputs.
            OutOfMemoryError: the memory of the device does not hold what the batch needs.
            MissingComponentError: the GPU is lost.
            ModelError: the model fails on them all the same.
        """
        check_feeds(self._inputs, inputs)
        try:
            with without_tensor_float(self._provider):  # the TensorRT provider builds an engine for new shapes
                outputs = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # ONNX Runtime has one class of its own for each of its status codes
            count = max((len(array) for array in inputs.values() if array.ndim), default=1)
            fault = device_fault(error, f"{self.name}, batch of {count}", SMALLER_BATCH)
            if fault is not None:
                raise fault from error
            raise ModelError(f"{self.name} fails on this input: {first_line(error)}") from error
        if self._freed is not None and sum(array.nbytes for array in inputs.values()) >= _LARGE_INPUT:
            self._freed.give_back()
        return {name: self._own(output, name) for name, output in zip(self._outputs, outputs, strict=True)}

    def _own(self, output: Any, name: str) -> Array:
        """The output as an array that holds on to no memory but its own, as it would to all of an arena."""
        if not isinstance(output, np.ndarray):
            raise ModelError(f"{self.name}: output '{name}' is a {type(output).__name__}, not a tensor")
        return output.copy() if self._has_arena and not output.flags.owndata else output

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session = None
        self._weights = []


MOST_RUNS = 8  # at once; past that they wait for the interpreter


@cache
def small_runs_within(max_memory: int) -> OpenModel:
    """Opens models for small runs, in a process that may hold so many bytes; see `open_for_small_runs`."""
    least, most = _GROWTH
    growth = min(max(max_memory // _GROWTH_SHARE, least), most)
    freed = FreedMemory(growth, max_memory * 7 // 8)  # of the process, not of a session

    def open_model(model: onnx.ModelProto) -> OnnxRuntimeRunner:
        return OnnxRuntimeRunner(model, concurrency=min(MOST_RUNS, available_processors()), freed=freed)

    return open_model


def open_for_small_runs(model: onnx.ModelProto) -> Runner:
    """Opens a part of a model for a measurement: many small runs on the CPU, several at once."""
    return small_runs_within(DEFAULT_MAX_MEMORY)(model)


def available_processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _open_session(model: Path | onnx.ModelProto, provider: str, concurrency: int | None) -> tuple[Any, list[Any]]:
    """The session, with nothing printed and no provider instead of another, and the memory that it reads from."""
    try:
        onnxruntime = import_onnxruntime()
    except ImportError:
        raise MissingComponentError(f"onnxruntime is not installed; run: {install_line(provider)}") from None
    options = _session_options(onnxruntime, model, provider, concurrency)
    try:
        providers = choose_provider(onnxruntime, options, provider, model)
        source, weights = (str(model), []) if isinstance(model, Path) else _serialize(model, options)
        session = onnxruntime.InferenceSession(
            source,
            options,
            providers=providers,
            enable_fallback=0,  # the fallback prints on stdout
        )
    except (MissingComponentError, ModelError):
        raise
    except Exception as error:  # see `run`
        where = f"{model}: " if isinstance(model, Path) else ""
        raise ModelError(f"{where}onnxruntime can't load the model: {first_line(error)}") from error
    return session, weights


def _session_options(onnxruntime: Any, model: Path | onnx.ModelProto, provider: str, concurrency: int | None) -> Any:
    """How a session runs: silent, without spinning threads, and as the provider and the concurrency want it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    # A measurement opens a session for each of its stages: threads that spin while they wait cost it three quarters of
    # its time on a machine that does other work, and bring little on one that does not.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if _holds_float8(model):
        # Past this level ONNX Runtime fuses Q/DQ in float8 into convolutions whose outputs are wrong on a CPU.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if provider != CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.use_deterministic_compute = True
    if concurrency is not None:
        options.intra_op_num_threads = max(1, available_processors() // concurrency)
        options.enable_cpu_mem_arena = False  # each output has memory of its own then, and is kept without a copy
        if isinstance(model, onnx.ModelProto) and not fits_one_file(model):
            # A second layout of each weight, for the speed of many runs, would take as much memory as the file again.
            options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _holds_float8(model: Path | onnx.ModelProto) -> bool:
    """Whether a graph quantises to float8: the zero points say so."""
    if isinstance(model, Path):
        try:
            model = onnx.load(model, load_external_data=False)
        except Exception:  # whatever it is, ONNX Runtime will say what is wrong with it
            return False
    return any(tensor.data_type in _FLOAT8 for tensor in model.graph.initializer)


def _serialize(model: onnx.ModelProto, options: Any) -> tuple[bytes, list[Any]]:
    """The model as bytes; past 2 GiB, where bytes end, without its large weights, which go into `options`.

    ONNX Runtime maps the weights that stand in a file, of one folder. The others it copies: they must live as long as
    the session.
    """
    weights: list[Any] = []
    if not fits_one_file(model):
        ort_value = import_onnxruntime().OrtValue
        model, detached = detach_weights(model)
        folders = Counter(file.parent for tensor in detached.values() if (file := file_of(tensor)) is not None)
        for folder, _ in folders.most_common(1):
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
            for entry in model.graph.initializer:
                file = file_of(detached[entry.name]) if entry.name in detached else None
                if file is not None and file.parent == folder:
                    refer_to_file(entry, Path(file.name), offset_of(detached.pop(entry.name)))
        weights = [ort_value.ortvalue_from_numpy(values_of(tensor)) for tensor in detached.values()]
        options.add_external_initializers(list(detached), weights)
    try:
        return model.SerializeToString(), weights
    except (EncodeError, ValueError) as error:
        raise ModelError(f"the model can't be handed to onnxruntime: {first_line(error)}") from error


def _spec(tensor: Any) -> InputSpec:
    """The type and shape of an input. ONNX Runtime gives an empty shape where the model states none."""
    shape = tuple(side if isinstance(side, int) else None for side in tensor.shape)
    return InputSpec(tensor.name, _DTYPES.get(tensor.type), shape or None)
